"""All checks of the doctor, one after the other."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from danceflow.errors import DanceflowError
from danceflow.params.read import load_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from flows.doctor import machine, repository, stores
from flows.doctor.finding import Finding, fail, ok, warn
from flows.team.run import standing


def examine(root: Path) -> Iterator[Finding]:
    """Yield what all checks find, the machine first.

    A check that itself goes wrong is a finding, and the others go on.

    Args:
        root: the checkout.
    """
    yield from _safely("versions", lambda: machine.versions(root))
    yield from _safely("room", lambda: machine.room(root))
    yield from _safely("port", machine.ports)
    yield from _safely("git", repository.git_version)
    yield from _safely("git", lambda: repository.git_state(root))
    yield from _safely("dvc", lambda: repository.dvc_state(root))
    yield from _safely("permissions", lambda: repository.permissions(root))
    yield from _safely("leftovers", lambda: repository.leftovers(root))
    yield from _safely("clock", lambda: repository.clock(root))
    yield from _safely("prefect", lambda: stores.prefect(root))
    yield from _safely("clock", lambda: stores.storage(root))
    yield from _safely("team", lambda: _team(root))
    try:
        params = load_params(Paths(root).params)
    except DanceflowError as error:
        yield fail("params", str(error), "mend params.yaml; git diff params.yaml tells changes")
        return
    yield ok("params", f"{Paths(root).params} is complete and right")
    yield from _safely("mlflow", lambda: stores.tracking(root, params.tracking))
    yield from _safely("device", lambda: machine.gpu(params))
    yield from _judge_key(params)


def _judge_key(params: Params) -> Iterator[Finding]:
    """Yield whether the keys that the parameters name are in the environment, never the keys."""
    judge = params.evaluate.judge
    name = None if judge is None or judge.offline else judge.key_variable
    if name and not os.environ.get(name):
        yield fail("judge", f"the environment has no {name}", f"export {name}=...")


def _team(root: Path) -> Iterator[Finding]:
    """Yield which servers of the team are not there, where there is a team on this machine."""
    if not (Paths(root).team / "passwords.json").is_file():
        return
    found = standing(root)
    if not any(item.is_running for item in found):
        yield ok("team", "the team's servers of this checkout are ended")
        return
    for item in found:
        if item.is_ready:
            yield ok("team", f"{item.name} at {item.address}")
        elif item.is_running:
            yield fail("team", f"{item.name} runs and does not answer", "danceflow team up")
        elif item.name != "model":  # started on demand
            yield warn("team", f"{item.name} is not running", "danceflow team up")


def _safely(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds, and its own error as a finding."""
    try:
        yield from look()
    except Exception as error:  # the doctor does not fall ill himself
        reason = " ".join(str(error).split()) or type(error).__name__
        yield fail(check, f"could not be looked at: {reason}", "mend that first")

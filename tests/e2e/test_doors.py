"""The three doors on the real stages: one result, and whichever comes second executes nothing.

Only the first run executes everything; what is changed here makes the report stale, which takes a
moment.
"""

import pytest
from checkout import outcomes

from danceflow.ops.tracking import open_store
from flows import dvc_temporaries

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]


def registry_of(checkout) -> tuple[int, int]:
    """The number of runs and of registered versions."""
    store = open_store(checkout.tracking)
    versions = store.client.search_model_versions(
        f"name = '{checkout.params.tracking.registered_model}'"
    )
    return len(store.client.search_runs([store.experiment_id])), len(versions)


def test_after_the_flow_neither_the_flow_nor_dvc_repro_executes_anything(finished) -> None:
    checkout = finished.checkout
    lock = checkout.lock
    left = checkout.root / ".dvc" / "cache" / "files" / "md5" / "00"
    left.mkdir(parents=True, exist_ok=True)
    left /= f".{dvc_temporaries._machine()}.1-1.{'x' * 22}.tmp"  # by a process that has gone
    left.touch()
    nobody = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}  # nothing to run, nothing to ask it
    again = outcomes(checkout.run("danceflow", "run", environment=nobody))
    assert not left.exists()
    assert again.keys() == outcomes(finished.table).keys()
    assert set(again.values()) <= {"unchanged", "frozen"}
    assert checkout.dvc("repro") == []
    assert checkout.lock == lock
    assert checkout.status() == ""
    assert registry_of(checkout) == (1, 1)


def test_after_dvc_exp_run_the_flow_executes_nothing_and_keeps_the_checkout(finished) -> None:
    checkout = finished.checkout
    change = ("-S", "gate.max_regression=0.06")
    assert checkout.dvc("exp", "run", *change, "--name", "by-dvc") == ["report"]
    lock = checkout.lock
    checkout.restore()
    before = checkout.lock
    assert lock != before

    found = outcomes(checkout.run("danceflow", "run", *change, "--name", "by-flow"))
    assert "ran" not in found.values()
    assert checkout.status() == ""
    assert checkout.lock == before
    assert checkout.run("git", "worktree", "list").count("\n") == 1
    names = "--format=%(refname)"
    (kept,) = checkout.run("git", "for-each-ref", names, "refs/exps/*/*/by-flow").split()
    assert checkout.run("git", "show", f"{kept}:dvc.lock") == lock
    assert "max_regression: 0.06" in checkout.run("git", "show", f"{kept}:params.yaml")
    assert "by-flow" in checkout.run("dvc", "exp", "list", "--name-only")
    assert registry_of(checkout) == (1, 1)  # the same student


def test_after_dvc_repro_dvc_exp_run_executes_nothing(finished) -> None:
    checkout = finished.checkout
    checkout.set("gate.max_regression", 0.07)
    assert checkout.dvc("repro") == ["report"]
    lock = checkout.lock
    checkout.restore()
    change = ("-S", "gate.max_regression=0.07")
    assert checkout.dvc("exp", "run", *change, "--name", "second") == []
    assert checkout.lock == lock

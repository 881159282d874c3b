import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hook_server import hook_server
from registered import checkout_in, enter, promotions_of

from danceflow.errors import UsageError
from danceflow.params.read import load_params
from flows import promote

pytestmark = [pytest.mark.pipeline, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def root(tmp_path: Path, mlflow_template: Path) -> Path:
    """Version 1 is the champion, and version 2 passes the gate."""
    root = checkout_in(tmp_path / "checkout", mlflow_template)
    assert [enter(root, score) for score in (0.8, 0.9)] == [1, 2]
    promote.promote(root, 1)
    return root


class Run(threading.Thread):
    """A flow that runs beside the test, which answers it as Prefect's page does."""

    def __init__(self, flow: Any, **parameters: Any) -> None:
        super().__init__(daemon=True)
        self.flow, self.parameters = flow, parameters
        self.result: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.flow(**self.parameters)
        except Exception as error:
            self.error = error

    def ended(self) -> None:
        self.join(60)
        assert not self.is_alive()


def paused(client: Any, run: Run) -> Any:
    """Return the paused flow run, once there is one with its form."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
    deadline = time.monotonic() + 120
    while True:
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state))
        if found and form_of(found[0])[1] is not None:
            return found[0]
        assert time.monotonic() < deadline
        assert run.is_alive(), run.error
        time.sleep(0.1)


def form_of(run: Any) -> tuple[Any, Any]:
    """Return the form that the page shows, and the words above it."""
    from prefect.input.actions import read_flow_run_input

    keyset = run.state.state_details.run_input_keyset
    schema, words = (
        read_flow_run_input(keyset[name], flow_run_id=run.id) for name in ("schema", "description")
    )
    return schema, words


@pytest.fixture
def client() -> Iterator[Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


def test_a_person_approves_on_a_form_and_is_remembered(tmp_path, mlflow_template, client):
    from flows.approval import run_promotion

    with hook_server() as hooks:
        hook = f"{{url: '{hooks.url}/', secret_variable: null, secret_block: null, auth: none}}"
        section = f"notify:\n  blocks: []\n  webhooks: [{hook}]\n"
        root = checkout_in(tmp_path / "checkout", mlflow_template, section)
        for score in (0.8, 0.9):
            enter(root, score)
        promote.promote(root, 1)
        run = Run(run_promotion, version=2, reason="<b>better</b> hands", root=root)
        waiting = paused(client, run)
        assert int(promotions_of(root).holder("champion").version) == 1
        schema, words = form_of(waiting)
        assert set(schema["required"]) == {"decision", "who", "why"}
        assert schema["properties"]["decision"]["enum"] == ["promote", "refuse"]
        assert "Version 2 of danceflow-scenes passes the gate" in words
        assert "&lt;b&gt;better&lt;/b&gt; hands" in words
        for bad in ({}, {"decision": "promote", "who": "", "why": "x"}, {"decision": "maybe"}):
            answer = client.resume_flow_run(waiting.id, run_input=bad)
            assert answer.status.value != "ACCEPT", bad
        good = {"decision": "promote", "who": "Ada", "why": "looked at forty hands"}
        client.resume_flow_run(waiting.id, run_input=good)
        run.ended()
    assert run.error is None
    assert (run.result.version, run.result.previous) == (2, 1)
    last = promotions_of(root).history()[-1]
    assert last == run.result
    assert last.reason == "<b>better</b> hands"
    assert (last.approval.by, last.approval.reason) == ("Ada", "looked at forty hands")
    told = [(item["type"], item["data"]["version"]) for item in hooks.told()]
    assert told == [
        ("student.promoted", 1),
        ("student.approval_wanted", 2),
        ("student.promoted", 2),
    ]
    assert str(waiting.id) in hooks.told()[1]["data"]["page"]
    assert hooks.told()[2]["data"]["approval"]["by"] == "Ada"


def test_a_refusal_is_remembered_and_no_schedule_asks_again(root, client):
    from flows.approval import NotApprovedError, run_promotion

    run = Run(run_promotion, root=root, version=2)
    waiting = paused(client, run)
    no = {"decision": "refuse", "who": "Ada", "why": "six fingers"}
    client.resume_flow_run(waiting.id, run_input=no)
    run.ended()
    assert isinstance(run.error, NotApprovedError)
    assert "version 2 was refused by Ada: six fingers" in str(run.error)
    params = load_params(root / "params.yaml")
    standing = promote.consider(root, params, 2)
    assert (standing.refused, standing.champion) == (True, False)
    changes, astray = promote.history(root)
    assert astray is None
    assert [change.action for change in changes] == ["promote", "refused"]


def test_what_was_promoted_meanwhile_is_not_overwritten(root, client):
    """The answer is about the champion of that moment: the gate asks again."""
    from flows.approval import run_promotion
    from flows.promote import rollback

    run = Run(run_promotion, root=root, version=2)
    waiting = paused(client, run)
    promote.promote(root, 2)
    rollback(root)
    enter(root, 0.99)
    promote.promote(root, 3)
    yes = {"decision": "promote", "who": "Ada", "why": "fine"}
    client.resume_flow_run(waiting.id, run_input=yes)
    run.ended()
    assert run.error is not None
    assert "does not pass the gate" in str(run.error)
    assert int(promotions_of(root).holder("champion").version) == 3


def test_nobody_answers(root, client):
    from flows.approval import NotApprovedError, run_promotion

    run = Run(run_promotion, root=root, version=2, patience_s=1.0)
    run.ended()
    assert isinstance(run.error, NotApprovedError)
    assert "nobody answered within 1 s; version 2 stays the challenger" in str(run.error)
    assert int(promotions_of(root).holder("champion").version) == 1


def test_nobody_is_asked_where_there_is_nothing_to_ask(root):
    from flows.approval import run_promotion

    with pytest.raises(UsageError, match="version 1 is the champion already"):
        run_promotion(version=1, root=root)
    worse = enter(root, 0.5)
    with pytest.raises(UsageError, match=f"version {worse} does not pass the gate"):
        run_promotion(version=worse, root=root)


@pytest.mark.parametrize("decision", ["promote", "refuse"])
def test_a_run_of_the_pipeline_asks_after_the_gate(root, client, decision):
    """A refusal is no failure of the run, and a version that is settled asks nobody."""
    from prefect import flow

    from flows import approval

    params = load_params(root / "params.yaml")

    @flow(name=f"gate-{decision}", persist_result=False)
    def gate(number: int) -> Any:
        standing = promote.consider(root, params, number, wait_for_approval=True)
        return approval.asked(root, params, standing)

    run = Run(gate, number=2)
    waiting = paused(client, run)
    assert int(promotions_of(root).holder("champion").version) == 1
    answer = {"decision": decision, "who": "Ada", "why": "so it is"}
    client.resume_flow_run(waiting.id, run_input=answer)
    run.ended()
    assert run.error is None
    approved = decision == "promote"
    assert (run.result.champion, run.result.refused) == (approved, not approved)
    assert int(promotions_of(root).holder("champion").version) == (2 if approved else 1)
    again = gate(2)
    assert (again.champion, again.refused) == (approved, not approved)

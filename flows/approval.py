"""A person decides: a flow run that pauses, with a form on Prefect's page.

Prefect's own server knows no users. Who answers says who they are, and what they say is kept in the
history of the champion.
"""

import logging
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for
from pydantic import Field, StringConstraints

from danceflow.errors import DanceflowError
from danceflow.params.read import load_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.registry.history import MAX_REASON, Approval, Change, now
from danceflow.registry.promotion import Standing
from flows import promote
from flows.beginning import begin
from flows.links import flow_page
from flows.notify import News, tell
from flows.parameters import Seconds

PATIENCE_S = 7 * 86_400.0
"""How long an answer is waited for unless something else is said."""

PIPELINE_PATIENCE_S = 86_400.0
"""How long a whole run waits: those behind it wait for its end."""

_POLL_S = 2
_LOG = logging.getLogger(__name__)

Words = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_REASON)
]


class NotApprovedError(DanceflowError):
    """A person refused a promotion, or nobody answered."""


class Answer(RunInput):
    """Shall this version become the champion?"""

    decision: Literal["promote", "refuse"] = Field(title="Decision")
    who: Words = Field(title="Who decides", description="Your name; it is kept in the history.")
    why: Words = Field(title="Why", description="It is kept in the history.")


@flow(name="danceflow-promotion", persist_result=False)
def run_promotion(
    version: int | None = None,
    reason: str = "",
    root: Path | None = None,
    patience_s: Seconds = PATIENCE_S,
) -> Change:
    """Ask a person on Prefect's page whether a version shall become champion, and do so.

    Args:
        version: its number; left out, it is the challenger.
        reason: why it is proposed; the form shows it, and the history keeps it.
        root: the checkout; left out, it is the one that the working folder lies in.
        patience_s: seconds that an answer is waited for.

    Raises:
        GateError: the gate does not let it pass, before or after the answer.
        NotApprovedError: it was refused, or nobody answered.
        ConflictError: somebody else changed the champion meanwhile.
        UsageError: there is no such version, or it is the champion already.
    """
    place = begin(root)
    standing = promote.proposed(place, version)
    params = load_params(Paths(place).params)
    return decide(place, params, standing, reason, patience_s)


def decide(
    root: Path, params: Params, standing: Standing, reason: str, patience_s: float
) -> Change:
    """Pause the flow run until a person has answered, and return what came of it.

    Args:
        root: the checkout or worktree.
        params: its parameters.
        standing: of the version, which passes the gate.
        reason: why it is proposed.
        patience_s: seconds that an answer is waited for.

    Raises:
        GateError: it does not pass the gate any more, against the champion of now.
        NotApprovedError: it was refused, or nobody answered.
        ConflictError: somebody else changed the champion meanwhile.
    """
    number, model = standing.version, params.tracking.registered_model
    address = url_for("flow-run", flow_run.id) or flow_page(str(flow_run.id))
    asked = f"Version {number} of {model} passes the gate. Shall it become the champion?"
    _LOG.info("%s Answer at %s", asked, address)
    news = News("approval wanted", model, number, f"{asked} {address}", {"page": address})
    tell(news, params.notify, root)
    lines = [asked, *([f"Proposed because: {reason}"] if reason else [])]
    lines += [f"* {check}" for check in standing.verdict.checks]
    if standing.withdrawn:
        lines.append("* It was the champion once and was rolled back.")
    try:
        answer = pause_flow_run(
            # The page shows Markdown, and HTML in it.
            wait_for_input=Answer.with_initial_data(description=escape("\n\n".join(lines))),
            timeout=round(patience_s),
            poll_interval=_POLL_S,
        )
    except FlowPauseTimeout:
        raise NotApprovedError(
            f"nobody answered within {patience_s:g} s; version {number} stays the challenger: "
            f"`danceflow promote {number}` makes it the champion"
        ) from None
    approval = Approval(answer.who, now(), answer.why)
    if answer.decision == "refuse":
        promote.refuse(root, params, number, approval)
        raise NotApprovedError(f"version {number} was refused by {answer.who}: {answer.why}")
    return promote.promote(root, number, reason, approval, params)


def asked(root: Path, params: Params, standing: Standing) -> Standing:
    """Return how a version stands once a person was asked about it, if there is something to ask.

    Nobody is asked about a version that does not pass the gate, is the champion, was rolled back,
    or was refused before. A refusal is no failure, and neither is it that nobody answered.

    Args:
        root: the checkout or worktree.
        params: its parameters.
        standing: of the version after the gate.

    Raises:
        GateError: it does not pass the gate any more, against the champion of now.
        ConflictError: somebody else changed the champion meanwhile.
    """
    is_settled = standing.champion or standing.withdrawn or standing.refused
    if is_settled or not standing.verdict.passed:
        return standing
    try:
        change = decide(root, params, standing, "", PIPELINE_PATIENCE_S)
    except NotApprovedError as error:
        _LOG.warning("%s", error)
        return replace(standing, refused=True)
    return replace(standing, champion=True, change=change)

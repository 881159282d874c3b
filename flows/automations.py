"""What Prefect's server does by itself: it notices runs that were killed, and lets them go on.

A run says that it is alive every half minute. One that falls silent counts as crashed, whatever
killed it, and so gives up its place in the queue. A crashed run of a deployment is started again,
and goes on from its checkpoint; one that crashes again soon waits for a person.
"""

import logging
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

FLOWS = ("danceflow", "danceflow-sweep", "danceflow-teachers", "danceflow-watch")
"""The flows that are looked after; all are started with heartbeats (``flows.home``)."""

SILENT_AFTER_S = 70.0
"""Two heartbeats and some patience; with all delays a killed run is told within 90 s."""

NOT_STARTED_AFTER_S = 600.0
"""How long a run may take from its turn to its first line."""

CALM_H = 6.0
"""A deployment's crashed runs are started again once within so many hours."""

_LOG = logging.getLogger(__name__)

_RUN = "prefect.resource.id"
_ENDS = frozenset(
    f"prefect.flow-run.{name}"
    for name in (
        "AwaitingRetry",
        "Cancelled",
        "Completed",
        "Crashed",
        "Failed",
        "Paused",
        "Scheduled",
        "Suspended",
    )
)


def set_up() -> tuple[str, ...]:
    """Make the automations on the server, or bring them up to date; return their names.

    What a person has switched off on the page stays off.
    """
    with get_client(sync_client=True) as client:
        wanted = (_silent(), _stuck(), _continued())
        for automation in wanted:
            _make(client, automation)
    return tuple(automation.name for automation in wanted)


def _make(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    known = client.read_automations_by_name(wanted.name)
    for double in known[1:]:  # two set-ups at once
        client.delete_automation(double.id)
    if not known:
        client.create_automation(wanted)
        _LOG.info("Prefect's server now does this by itself: %s", wanted.name)
        return
    found = known[0]
    wanted.enabled = found.enabled
    core = AutomationCore.model_validate(found.model_dump(include=set(AutomationCore.model_fields)))
    if _said(core) != _said(wanted):
        client.update_automation(found.id, wanted)


def _said(automation: AutomationCore) -> dict[str, object]:
    """Return what an automation says, without the marks that the server puts on its parts."""
    said = automation.model_dump(mode="json")
    trigger = {
        key: sorted(value) if isinstance(value, list) else value
        for key, value in said["trigger"].items()
        if key != "id"
    }
    return {**said, "trigger": trigger}


def _silent() -> AutomationCore:
    beat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name="danceflow: a run that falls silent has crashed",
        description=f"No heartbeat for {SILENT_AFTER_S:g} s: its process was killed.",
        trigger=_absence({beat}, {beat, *_ENDS}, SILENT_AFTER_S),
        actions=[_crashed(f"no heartbeat for {SILENT_AFTER_S:g} s: its process was killed")],
    )


def _stuck() -> AutomationCore:
    return AutomationCore(
        name="danceflow: a run that never starts has crashed",
        description=f"Its turn came, and {NOT_STARTED_AFTER_S:g} s later nothing has begun.",
        trigger=_absence(
            {"prefect.flow-run.Pending"},
            {"prefect.flow-run.Running", *_ENDS},
            NOT_STARTED_AFTER_S,
        ),
        actions=[_crashed("what was to start it was killed")],
    )


def _continued() -> AutomationCore:
    return AutomationCore(
        name="danceflow: a crashed run goes on",
        description=f"From its checkpoint; once in {CALM_H:g} hours for a deployment.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=_runs(),
            match_related=_flows(),
            for_each={"related:deployment:prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(hours=CALM_H),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED, message="crashed; goes on from its checkpoint"
            )
        ],
    )


def _absence(after: set[str], expect: set[str], within_s: float) -> EventTrigger:
    return EventTrigger(
        after=after,
        expect=expect,
        match=_runs(),
        match_related=_flows(),
        for_each={_RUN},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_s),
    )


def _crashed(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=StateType.CRASHED, message=message)


def _runs() -> ResourceSpecification:
    return ResourceSpecification.model_validate({_RUN: "prefect.flow-run.*"})


def _flows() -> ResourceSpecification:
    return ResourceSpecification.model_validate(
        {"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}
    )

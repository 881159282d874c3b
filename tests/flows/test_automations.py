"""What the set-up makes on Prefect's server, once."""

import pytest

pytestmark = [pytest.mark.pipeline, pytest.mark.usefixtures("prefect_server")]


def test_the_set_up_is_made_once_and_brought_up_to_date() -> None:
    from prefect.client.orchestration import get_client

    from flows import automations

    names = automations.set_up()
    with get_client(sync_client=True) as client:
        found = {name: client.read_automations_by_name(name) for name in names}
        assert [len(made) for made in found.values()] == [1, 1, 1]
        silent, stuck, goes_on = (made[0] for made in found.values())
        assert {action.state.value for action in silent.actions + stuck.actions} == {"CRASHED"}
        assert goes_on.actions[0].state.value == "SCHEDULED"

        assert automations.set_up() == names
        again = {name: client.read_automations_by_name(name) for name in names}
        assert again == found

        client.pause_automation(stuck.id)
        silent.description = "of an older version"
        client.update_automation(silent.id, automations.AutomationCore(**_core(silent)))
        client.create_automation(automations._continued())  # another set-up at the same time
        automations.set_up()
        mended = {name: client.read_automations_by_name(name) for name in names}
        assert [len(made) for made in mended.values()] == [1, 1, 1]
        assert mended[silent.name][0].description != "of an older version"
        assert not mended[stuck.name][0].enabled


def _core(automation) -> dict:
    return automation.model_dump(include={"name", "description", "trigger", "actions"})


def test_two_beats_fit_into_the_patience() -> None:
    from flows import automations, home

    assert 2 * home.HEARTBEAT_S < automations.SILENT_AFTER_S
    assert automations.SILENT_AFTER_S + 10 < 90  # the server looks every five seconds

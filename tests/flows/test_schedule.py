import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from repository import ROOT

from danceflow.errors import UsageError
from flows import schedule
from flows.schedule import check_cron


@pytest.mark.parametrize("cron", ["", "every night", "0 25 * * *"])
def test_a_schedule_that_is_none_is_refused(cron):
    with pytest.raises(UsageError, match="is no cron schedule"):
        check_cron(cron)


def test_a_schedule_is_accepted():
    check_cron("0 2 * * *")


def test_a_checkout_has_deployments_of_its_own_and_one_schedule(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    name = schedule.deployment_name
    assert name("sweep", first) == name("sweep", first / ".." / "first")
    assert name("sweep", first) != name("sweep", second)
    with schedule._only_one(first), schedule._only_one(second):
        who = f"has a schedule already: process {os.getpid()} runs"
        with pytest.raises(UsageError, match=who), schedule._only_one(first):
            pass
    with schedule._only_one(first):
        pass


def test_ending_the_schedule_ends_its_runs():
    run = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(300,))
    with pytest.raises(SystemExit), schedule._ending_runs():
        run.start()
        raise SystemExit
    assert run.exitcode is not None


def test_the_queue_is_told_when_it_changes(caplog):
    caplog.set_level("INFO")
    log = logging.getLogger("test.runner")
    log.addFilter(schedule._Queue())
    for count in (1, 1, 2, 2, 2):
        log.info("%d scheduled runs skipped (at capacity)", count)
        log.info("something else")
    told = [text for text in caplog.messages if "wait" in text]
    assert told == [f"{count} runs wait until the checkout is free" for count in (1, 2)]
    assert caplog.messages.count("something else") == 5


def test_deployments_need_a_server(monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(UsageError, match="set PREFECT_API_URL"),
    ):
        schedule.deploy(ROOT)


@pytest.mark.pipeline
def test_one_command_makes_all_that_a_team_needs(prefect_server):
    """Twice: the second call changes nothing. And the server refuses what cannot be right."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
    from prefect.exceptions import PrefectHTTPStatusError

    from flows import automations, home

    schedule.deploy(ROOT)
    with get_client(sync_client=True) as client:
        made = client.read_deployments()
        assert len(made) == 5
        for deployment in made:  # closed when they were made: nothing has changed them since
            assert deployment.parameter_openapi_schema["additionalProperties"] is False
            assert deployment.updated <= deployment.created
    schedule.deploy(ROOT)
    with get_client(sync_client=True) as client:
        assert client.read_work_pool(schedule.POOL).concurrency_limit == 1
        found = {
            name: client.read_deployment_by_name(name)
            for name in (
                "danceflow/nightly",
                "danceflow/on-demand",
                "danceflow/smoke",
                "danceflow-sweep/sweep",
                "danceflow-watch/watch",
            )
        }
        for deployment in found.values():
            beats = deployment.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
            assert int(beats) == home.HEARTBEAT_S
            assert deployment.enforce_parameter_schema
            assert deployment.work_pool_name == schedule.POOL
        nightly, demand, smoke, sweep, watch = found.values()
        assert [item.schedule.cron for item in nightly.schedules] == ["0 2 * * *"]
        assert nightly.entrypoint == "flows/pipeline.py:run_pipeline"
        assert [item.schedule.cron for item in watch.schedules] == ["0 6 * * *"]
        assert sweep.entrypoint == "flows/sweep.py:run_sweep"
        assert [item.schedules for item in (demand, smoke, sweep)] == [[], [], []]
        assert Path(ROOT / smoke.parameters["recipe"]).is_file()
        assert Path(ROOT / sweep.parameters["file"]).is_file()
        assert len(client.read_automations_by_name(automations._continued().name)) == 1
        for deployment, wrong, told in (
            (demand, {"overrides": {"distill.num_updates": -1}}, "less than the minimum of 1"),
            (demand, {"overrides": {"distill.num_stepz": 4}}, "'distill.num_stepz' does not match"),
            (sweep, {"parallel": 0}, "less than the minimum of 1"),
            (demand, {"recipie": "recipes/smoke.yaml"}, "'recipie' was unexpected"),
            (watch, {"dayz": 3}, "'dayz' was unexpected"),
        ):
            with pytest.raises(PrefectHTTPStatusError, match="409") as error:
                client.create_flow_run_from_deployment(deployment.id, parameters=wrong)
            assert told in error.value.response.text
        asked = DeploymentFilter(id=DeploymentFilterId(any_=[demand.id, sweep.id]))
        assert client.read_flow_runs(deployment_filter=asked) == []


@pytest.mark.pipeline
def test_a_deployment_refuses_unknown_parameters_from_its_first_moment(prefect_server):
    """Prefect's own schema leaves others open: the run would be made, and fail in its turn."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    from flows.pipeline import run_pipeline

    made = schedule._Runner(name="a-checkout").add_flow(run_pipeline, name="at-once")
    with get_client(sync_client=True) as client:
        with pytest.raises(PrefectHTTPStatusError, match="409") as error:
            client.create_flow_run_from_deployment(made, parameters={"recipie": "smoke.yaml"})
        assert "'recipie' was unexpected" in error.value.response.text
        right = {"recipe": "recipes/smoke.yaml"}
        client.create_flow_run_from_deployment(made, parameters=right)


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("docker", {"image": "danceflow:cpu", "mem_limit": "8g"}, {"volumes": "/srv:/project"}),
        ("kubernetes", {"gpus": 8, "volume_claim": "ours"}, {"gpus": 0}),
    ],
)
def test_the_server_takes_the_pools_of_containers(prefect_server, kind, right, wrong):
    """With their job variables, and refuses values that these cannot have."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import PrefectHTTPStatusError

    template = json.loads((ROOT / "deploy" / "work-pools" / f"{kind}.json").read_text())
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(name=f"test-{kind}", type=kind, base_job_template=template)
        made = client.create_work_pool(pool)
        assert made.base_job_template == template
        flow = client.create_flow_from_name("a-flow")
        options = {"flow_id": flow, "work_pool_name": made.name}
        client.create_deployment(name=f"on-{kind}", job_variables=right, **options)
        with pytest.raises(PrefectHTTPStatusError, match="409|422"):
            client.create_deployment(name=f"not-on-{kind}", job_variables=wrong, **options)

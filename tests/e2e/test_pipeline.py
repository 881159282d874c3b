"""One whole run of the real stages: what it leaves in files, in MLflow and in Prefect."""

import re
from pathlib import Path
from typing import Any

import pytest
from checkout import outcomes
from PIL import Image

from danceflow.ops.tracking import open_store
from danceflow.registry.open import folder_digest
from danceflow.registry.promotion import CHALLENGER, CHAMPION, Promotions
from danceflow.stages import STAGES

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def checkout(first_run):
    first_run.checkout.restore()
    return first_run.checkout


@pytest.fixture(scope="module")
def summary(checkout) -> Any:
    return checkout.json(checkout.paths.summary)


@pytest.fixture(scope="module")
def store(checkout):
    return open_store(checkout.tracking)


@pytest.fixture(scope="module")
def run(store):
    """The only run."""
    (found,) = store.client.search_runs([store.experiment_id])
    return found


def every_stage(checkout) -> set[str]:
    return {
        f"{stage.name}@{item}" if stage.matrix else stage.name
        for stage in STAGES.values()
        for item in (checkout.params.capabilities if stage.matrix else ("",))
    }


def test_every_stage_is_executed(first_run, checkout) -> None:
    found = outcomes(first_run.table)
    assert found.pop("teachers") in {"frozen", "unchanged"}
    assert found.keys() == every_stage(checkout) - {"teachers"}
    assert set(found.values()) == {"ran"}
    assert checkout.run("dvc", "status").strip().endswith("Data and pipelines are up to date.")


def test_the_summary_holds_every_capability_on_as_many_rows_as_asked(checkout, summary) -> None:
    params = checkout.params
    assert list(summary["capabilities"]) == list(params.capabilities)
    for name, row in summary["capabilities"].items():
        best = summary["conflict"]["scale"][name]
        assert {"student", "teacher", "start", "retention", "retention_interval"} < row.keys()
        assert all(0 <= row[key] <= best for key in ("student", "teacher", "start"))
        if row["teacher"] > 0:
            assert row["retention"] == pytest.approx(row["student"] / row["teacher"], abs=1e-3)
        num_categories = len(summary["categories"][name])
        assert row["num_samples"] == params.evaluate.num_samples * num_categories
        curve = dict(summary["curve"][name])
        assert list(curve) == [0, 2, params.distill.num_updates]
    teachers = {capability.teacher for capability in params.capabilities.values()}
    fields = {*(f"teacher:{name}" for name in teachers), "start", "student"}
    assert summary["conflict"]["fields"].keys() == fields
    assert summary["stages"].keys() == every_stage(checkout) - {"teachers", "report"}


def test_the_gate_judges_what_the_summary_says(checkout, summary) -> None:
    gate = checkout.json(checkout.paths.gate)
    limits = checkout.params.gate.min_retention
    assert [check["capability"] for check in gate["checks"]] == list(limits)
    for check in gate["checks"]:
        retention = summary["capabilities"][check["capability"]]["retention"]
        assert check["kind"] == "retention"
        assert check["value"] == (None if retention is None else pytest.approx(retention, abs=1e-3))
        assert check["passed"] == (check["decision"] == "pass")
    assert gate["passed"] == all(check["passed"] for check in gate["checks"])
    assert len(gate["reasons"]) == sum(not check["passed"] for check in gate["checks"])


def test_the_page_needs_nothing_beside_it(checkout) -> None:
    page = checkout.paths.report_page.read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert "data:image/png;base64," in page
    assert "<svg" in page
    assert not re.search(r"""(?:src|href)=["']?(?!#|data:)[^"'> ]*\.(?:png|css|js|svg)""", page)
    for name in checkout.params.capabilities:
        assert checkout.json(checkout.paths.evaluation(name))["capability"] == name
        assert (checkout.paths.evaluation_images(name) / "grid.png").is_file()


def test_the_report_finds_the_links_to_its_runs_beside_it(checkout, run) -> None:
    beside = checkout.paths.run_links(checkout.json(checkout.paths.run_pointer)["key"])
    links = beside.read_text(encoding="utf-8")
    assert f"/runs/{run.info.run_id}" in links
    assert "/runs/flow-run/" in links
    shown = beside.relative_to(checkout.paths.reports)
    page = checkout.paths.report_page.read_text(encoding="utf-8")
    assert f'data="{shown}"' in page
    assert run.info.run_id not in page


def test_one_run_holds_parameters_metrics_and_inputs(checkout, run, store) -> None:
    params = checkout.params
    assert run.info.status == "FINISHED"
    assert run.data.params["distill.num_updates"] == str(params.distill.num_updates)
    assert run.data.params["distill.method"] == params.distill.method
    assert run.data.params["family.name"] == params.family.name

    def steps(metric: str) -> list[int]:
        return [entry.step for entry in store.client.get_metric_history(run.info.run_id, metric)]

    updates = list(range(1, params.distill.num_updates + 1))
    for name in params.capabilities:
        assert steps(f"validation/{name}") == [0, 2, params.distill.num_updates]
        assert steps(f"score.{name}") == [params.distill.num_updates]
        assert steps(f"{name}/score_in_1_steps") == [params.distill.num_updates]
    one_each = params.distill.capabilities_per_update == "one"
    logged = [set(steps(f"loss/{name}")) for name in params.capabilities]
    assert set.union(*logged) == set(updates)
    assert one_each or all(found == set(updates) for found in logged)
    assert steps("train/grad_norm") == updates

    digests = dict(re.findall(r"path: data/(\S+)\n.*?md5: (\w{32}\.dir)", checkout.lock, re.DOTALL))
    inputs = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert inputs.keys() == {"buckets", *(f"cache/{name}" for name in params.capabilities)}
    assert inputs == {name: digests[name] for name in inputs}


def test_the_run_shows_image_grids_by_step(checkout, run, store) -> None:
    files = [item.path for item in store.client.list_artifacts(run.info.run_id, "images")]
    found = {
        (parts[1], int(parts[2]))
        for path in files
        if (parts := re.fullmatch(r"images/grid\W(\w+)\Wstep\W(\d+)\W.*\.png", path))
    }
    assert found == {(name, step) for name in checkout.params.capabilities for step in (0, 2, 4)}
    tested = [path for path in files if re.fullmatch(r"images/test\W\w+\Wstep\W0\W.*\.png", path)]
    assert len(tested) == len(checkout.params.capabilities)
    place = store.client.download_artifacts(
        run.info.run_id, next(path for path in files if path.endswith(".png"))
    )
    with Image.open(place) as grid:
        assert min(grid.size) >= checkout.params.data.image_size


def test_the_student_is_registered_once_with_signature_aliases_and_verdict(
    checkout, run, store
) -> None:
    import mlflow

    name = checkout.params.tracking.registered_model
    (model,) = store.client.search_logged_models([store.experiment_id])
    (version,) = store.client.search_model_versions(f"name = '{name}'")
    assert model.source_run_id == version.run_id == run.info.run_id
    assert version.source == model.model_uri
    assert version.tags["student.digest"] == folder_digest(checkout.paths.student)
    with store.as_current():
        signature = mlflow.models.get_model_info(f"models:/{name}/1").signature
    assert [(item.name, item.required) for item in signature.inputs] == [
        ("prompt", True),
        ("image", False),
        ("image_2", False),
        ("image_3", False),
    ]
    defaults = {item.name: item.default for item in signature.params}
    steps = checkout.params.evaluate.num_steps
    assert defaults == {"seed": 0, "steps": steps, "guidance": 1.0, "size": ""}

    gate = checkout.json(checkout.paths.gate)
    promotions = Promotions(store, name)
    assert promotions.holder(CHALLENGER).version == version.version
    champion = promotions.holder(CHAMPION)
    assert (champion is not None) == gate["passed"]
    for tags in (run.data.tags, version.tags):
        assert tags["gate.passed"] == str(gate["passed"]).lower()
        assert tags["gate.reasons"] == "; ".join(gate["reasons"])
        assert tags["gate.champion"] == ""


def test_prefect_shows_the_result(first_run) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts()
    # What the command printed, and a line of links.
    (table,) = (item for item in artifacts if str(item.data).startswith(first_run.table))
    assert (table.key, table.type) == ("danceflow-result", "markdown")
    assert str(table.flow_run_id) in table.data.removeprefix(first_run.table)
    same_run = [item for item in artifacts if item.flow_run_id == table.flow_run_id]
    (picture,) = (item for item in same_run if item.type == "image")
    assert picture.key == "danceflow-samples"
    assert picture.data.startswith("data:image/png;base64,")


def test_the_run_left_no_scratch_behind(checkout) -> None:
    assert not [path for path in checkout.root.rglob("*.partial") if ".git" not in path.parts]
    assert checkout.run("git", "worktree", "list").count("\n") == 1
    assert Path(checkout.root / "mlflow.db").is_file()
    assert not (checkout.root / "mlruns").exists()

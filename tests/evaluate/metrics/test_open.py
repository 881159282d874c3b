"""Metrics with weights by path: exact at the ends, and a clear word where weights are missing."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_project import small_data
from training_record import CAPABILITIES

from danceflow.data.buckets import read_bucket
from danceflow.errors import WeightsError
from danceflow.evaluate import stage as evaluate
from danceflow.evaluate.metrics import METRICS
from danceflow.evaluate.metrics.clip import ClipScore
from danceflow.evaluate.metrics.distribution import InceptionDistances
from danceflow.evaluate.metrics.lpips import Lpips
from danceflow.evaluate.metrics.open import open_metrics
from danceflow.evaluate.records import read_evaluation
from danceflow.evaluate.task import STANDARD, build_task
from danceflow.models.package import load_package
from danceflow.params.read import parse_params
from danceflow.params.sections import WeightsParams
from danceflow.paths import Paths
from danceflow.report import stage as report
from danceflow.report.page.page import figure
from danceflow.worlds.world import open_world

NONE = {"clip": None, "lpips": None, "inception": None}


def metrics(evaluator, task, images) -> dict[str, float]:
    return {item.name: item.value for item in evaluator(task, images)}


def test_without_weights_every_metric_is_named_and_left_out() -> None:
    evaluators, left_out = open_metrics(WeightsParams(**NONE), Path())
    assert len(evaluators) == sum(metric.weights is None for metric in METRICS)
    assert [line.partition(":")[0] for line in left_out] == [
        "CLIPScore",
        "LPIPS",
        "FID and KID on Inception features",
    ]
    assert all("evaluate.weights." in line for line in left_out)


def test_weights_that_are_there_are_used(alexnet: Path, inception: Path) -> None:
    weights = WeightsParams(**NONE | {"lpips": alexnet.name, "inception": str(inception)})
    evaluators, left_out = open_metrics(weights, alexnet.parent)
    assert [type(item) for item in evaluators[-2:]] == [Lpips, InceptionDistances]
    assert len(left_out) == 1


@pytest.mark.parametrize("name", NONE)
def test_a_path_that_leads_nowhere_is_an_error(tmp_path: Path, name: str) -> None:
    weights = WeightsParams(**NONE | {name: str(tmp_path / "nowhere")})
    with pytest.raises(
        WeightsError, match=rf"evaluate\.weights\.{name}: .*nowhere: there is no such"
    ):
        open_metrics(weights, Path())


@pytest.mark.parametrize("name", ["lpips", "inception"])
def test_a_file_that_is_something_else_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"something else")
    weights = WeightsParams(**NONE | {name: str(tmp_path / "file")})
    with pytest.raises(WeightsError, match=rf"evaluate\.weights\.{name}: .*file: cannot be used"):
        open_metrics(weights, Path())


@pytest.mark.parametrize("name", ["lpips", "inception"])
def test_what_is_wrong_with_a_file_is_told_whole(tmp_path: Path, name: str) -> None:
    torch.save({"another": torch.zeros(1)}, tmp_path / "file")
    weights = WeightsParams(**NONE | {name: str(tmp_path / "file")})
    with pytest.raises(WeightsError, match="cannot be used") as caught:
        open_metrics(weights, Path())
    assert caught.value.__cause__ is not None
    assert str(caught.value).endswith(" ".join(str(caught.value.__cause__).split()))


def test_the_stage_measures_with_given_weights_and_the_report_shows_it(
    reported, alexnet: Path, inception: Path, clip: Path, tmp_path: Path
) -> None:
    name = "global_edit"
    shutil.copytree(reported[1].root, tmp_path / "copy")
    paths = Paths(tmp_path / "copy")
    weights = {"clip": str(clip), "lpips": str(alexnet), "inception": str(inception)}
    params = parse_params(small_data(CAPABILITIES, evaluate__weights=weights), "test")
    evaluate.run(params, paths, name)
    found = read_evaluation(paths.evaluation(name), name)
    further = ["clip_score", "lpips", "fid_inception", "kid_inception"]
    assert found.notes == ()
    assert all(list(field.metrics)[-4:] == further for field in found.fields.values())

    student = load_package(paths.student)
    dataset = read_bucket(paths.bucket(name), "test")
    task = build_task(
        name, dataset, open_world("scenes"), student.family, {STANDARD: params.evaluate.num_samples}
    )
    field = student.family.guided(student.field, 1.0)
    images = task.images(field, params.evaluate.num_steps, batch_size=32)
    expected = {}
    for evaluator in (ClipScore(clip), Lpips(alexnet), InceptionDistances(inception)):
        expected |= metrics(evaluator, task, images)
    own = found.fields["student"].metrics
    assert {key: own[key] for key in further} == pytest.approx(expected, rel=1e-3, abs=1e-4)

    report.run(params, paths)
    summary = json.loads(paths.summary.read_text())
    assert summary["metrics"][name]["student"].items() >= own.items()
    assert [note.partition(": not")[0] for note in summary["notes"]] == [
        f"t2i, local_edit: {text}"
        for text in ("CLIPScore", "LPIPS", "FID and KID on Inception features")
    ]
    page = paths.report_page.read_text().partition('id="metrics"')[2]
    table = page.partition("<h3>Global edit</h3>")[2].partition("</table>")[0]
    columns = re.findall(r'<th scope="col">(.*?)</th>', table)
    row = table.partition('<tr class="student">')[2].partition("</tr>")[0]
    cells = dict(zip(columns[1:], re.findall("<td>(.*?)</td>", row), strict=True))
    titles = ("CLIPScore", "LPIPS to the target", "FID, Inception", "KID, Inception")
    assert [cells[title] for title in titles] == [figure(own[key]) for key in further]

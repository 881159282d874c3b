"""Metrics with weights by path: exact at the ends, and a clear word where weights are missing."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_project import small_data
from torch import nn
from training_record import CAPABILITIES

from danceflow.config import parse_params
from danceflow.data.buckets import read_bucket
from danceflow.errors import WeightsError
from danceflow.evaluate import evaluate, report
from danceflow.evaluate.evaluator import STANDARD, build_task
from danceflow.evaluate.page import figure
from danceflow.evaluate.records import read_evaluation
from danceflow.evaluate.weighted import ClipScore, InceptionDistances, Lpips, open_metrics
from danceflow.fields import normal
from danceflow.models.package import load_package
from danceflow.paths import Paths
from danceflow.schema import WeightsParams

NONE = {"clip": None, "lpips": None, "inception": None}


def metrics(evaluator, task, images) -> dict[str, float]:
    return {item.name: item.value for item in evaluator(task, images)}


def test_without_weights_every_metric_is_named_and_left_out() -> None:
    evaluators, left_out = open_metrics(WeightsParams(**NONE), Path())
    assert evaluators == []
    assert [line.partition(":")[0] for line in left_out] == [
        "CLIPScore",
        "LPIPS",
        "FID and KID on Inception features",
    ]
    assert all("evaluate.weights." in line for line in left_out)


def test_weights_that_are_there_are_used(alexnet: Path, inception: Path) -> None:
    weights = WeightsParams(**NONE | {"lpips": alexnet.name, "inception": str(inception)})
    evaluators, left_out = open_metrics(weights, alexnet.parent)
    assert [type(item) for item in evaluators] == [Lpips, InceptionDistances]
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


def test_lpips_is_zero_for_equal_images_and_grows_with_damage(tasks, alexnet: Path) -> None:
    task, lpips = tasks["global_edit"], Lpips(alexnet)
    found = []
    for level in (0.0, 0.05, 0.3):
        noise = level * normal(task.target.shape[1:], range(task.num_rows))
        found.append(metrics(lpips, task, (task.target + noise).clamp(0, 1))["lpips"])
    assert found[0] == 0
    assert 0 < found[1] < found[2]
    one, other = task.target[:1], 1 - task.target[:1]
    assert torch.equal(lpips.distances(one, other), lpips.distances(other, one))


def torchvision_features() -> nn.Sequential:
    """AlexNet's ``features`` as torchvision builds them, with its last pooling."""
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )


@pytest.mark.parametrize("scale", [1.0, 0.02], ids=["usual", "faint"])
def test_lpips_is_torchmetrics_with_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    from torchmetrics.functional.image import lpips as reference

    with torch.random.fork_rng():
        torch.manual_seed(1)
        features = torchvision_features()
    with torch.no_grad():
        for param in features.parameters():
            param *= scale
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state, tmp_path / "alexnet.pth")
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda net, pretrained: features)
    theirs = reference._LPIPS(pretrained=True, net="alex", pnet_rand=True)
    one, other = (normal((3, 72, 96), seeds).sigmoid() for seeds in ([1, 2, 3], [4, 5, 6]))
    other[1] = one[1]
    expected = theirs(one, other, normalize=True).flatten()
    found = Lpips(tmp_path / "alexnet.pth").distances(one, other)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert found[1] == 0
    assert min(found[0], found[2]) > 1e-3


def test_inception_distances_are_zero_for_equal_sets_and_grow(tasks, inception: Path) -> None:
    task, distances = tasks["global_edit"], InceptionDistances(inception)
    same = metrics(distances, task, task.target)
    assert same["fid_inception"] == pytest.approx(0, abs=1e-3)
    noise = normal(task.target.shape[1:], range(task.num_rows))
    near, far = (
        metrics(distances, task, (task.target + level * noise).clamp(0, 1)) for level in (0.1, 0.6)
    )
    assert same["fid_inception"] < near["fid_inception"] < far["fid_inception"]
    assert near["kid_inception"] < far["kid_inception"]
    assert metrics(distances, task.select([0]), task.target[:1]) == {}


def test_clip_score_is_about_prompt_and_picture(tasks, clip: Path) -> None:
    task, score = tasks["t2i"].select([0, 1, 2, 3]), ClipScore(clip)
    (found,) = score(task, task.target)
    assert found.name == "clip_score"
    assert len(found.rows) == 4
    assert all(0 <= value <= 100 for value in found.rows)
    (other,) = score(task, 1 - task.target)
    assert other.rows != found.rows


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
    task = build_task(name, dataset, student.family, {STANDARD: params.evaluate.num_samples})
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

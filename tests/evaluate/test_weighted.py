"""Metrics with weights by path: exact at the ends, and a clear word where weights are missing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from danceflow.errors import WeightsError
from danceflow.evaluate.weighted import ClipScore, InceptionDistances, Lpips, _alexnet, open_metrics
from danceflow.fields import normal
from danceflow.schema import WeightsParams

NONE = {"clip": None, "lpips": None, "inception": None}


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet's layers as torchvision names them, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {f"features.{name}": value for name, value in _alexnet().state_dict().items()}
    state["classifier.1.weight"] = torch.zeros(2)
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that takes uint8 images, as TorchScript."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", normal((3, 4, 4), range(8)))

        def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            hidden = nn.functional.conv2d(images.float() / 255, self.weight, stride=4)
            return hidden.relu().mean((2, 3))

    path = tmp_path_factory.mktemp("inception") / "inception.pt"
    torch.jit.script(Small()).save(str(path))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of random weights with its processor, as transformers saves both."""
    from tiny_models import clip_tokenizer
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer(16, "<|endoftext|>")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "projection_dim": 8}
    text = sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = sizes | {"image_size": 32, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    size = {"shortest_edge": 32}
    images = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


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

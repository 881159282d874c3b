"""A tiny project with three capabilities, evaluated and reported once; tiny weights of metrics.

pytest loads this file whatever it runs: what takes long to import waits in the fixtures.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from training_record import CAPABILITIES, write_metrics

from danceflow.params.sections import Params
from danceflow.paths import Paths

if TYPE_CHECKING:
    from danceflow.evaluate.task import Task
    from danceflow.models.family import ModelFamily

Project = tuple[Params, Paths]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Data, random teachers and a random student, not evaluated yet."""
    from tiny_models import awake
    from tiny_project import small_data, write_project

    from danceflow.models.family import open_family
    from danceflow.models.package import FROZEN_FOLDER, save_package
    from danceflow.worlds import prepare

    root = tmp_path_factory.mktemp("evaluate") / "project"
    data = small_data(CAPABILITIES, evaluate__further_steps=[4, 1])
    params, paths = write_project(root, data), Paths(root)
    prepare.run(params, paths)
    family = open_family(params.family.name, paths.teachers / FROZEN_FOLDER)
    paths.student.mkdir(parents=True)
    meta = {"image_sizes": [[32, 32]], "num_steps": 2, "num_updates": 60}
    meta["field_evaluations"] = {"rollout": 400, "training": 180}
    save_package(paths.student, family, awake(family, 9), meta)
    write_metrics(paths.distill_metrics)
    return params, paths


@pytest.fixture(scope="session")
def reported(prepared: Project) -> Project:
    """The same, evaluated and reported."""
    from danceflow.evaluate import stage as evaluate
    from danceflow.report import stage as report

    params, paths = prepared
    for capability in CAPABILITIES:
        evaluate.run(params, paths, capability)
    report.run(params, paths)
    return prepared


@pytest.fixture(scope="session")
def family(prepared: Project) -> "ModelFamily":
    from danceflow.models.family import open_family
    from danceflow.models.package import FROZEN_FOLDER

    params, paths = prepared
    return open_family(params.family.name, paths.teachers / FROZEN_FOLDER)


@pytest.fixture(scope="session")
def tasks(prepared: Project, family: "ModelFamily") -> "dict[str, Task]":
    """Two rows of every category and one of every variant, by capability."""
    from danceflow.data.buckets import read_bucket
    from danceflow.evaluate.task import build_task
    from danceflow.worlds.world import open_world

    _, paths = prepared
    world = open_world("scenes")
    counts = {"standard": 2, "reworded": 1, "held_out_pair": 1}
    return {
        name: build_task(name, read_bucket(paths.bucket(name), "test"), world, family, counts)
        for name in CAPABILITIES
    }


@pytest.fixture(scope="session")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet's layers as torchvision names them, with random weights."""
    import torch

    from danceflow.evaluate.metrics.lpips import _alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {f"features.{name}": value for name, value in _alexnet().state_dict().items()}
    state["classifier.1.weight"] = torch.zeros(2)
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that takes uint8 images, as TorchScript."""
    import torch
    from torch import nn

    from danceflow.fields import normal

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


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of random weights with its processor, as transformers saves both."""
    import torch
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

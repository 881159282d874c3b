"""Which network a recipe is about."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import TINY_FAMILIES, stock_pipeline
from tiny_project import small_data, small_params
from tiny_stock import (
    flux2_pipeline,
    qwen_image21_pipeline,
    qwen_image_pipeline,
    save_pipeline,
    zimage_pipeline,
)

from danceflow.errors import UsageError, WeightsError
from danceflow.models.bring import bring_teachers
from danceflow.models.family import open_family
from danceflow.params.names import FAMILY_NAMES
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.plan.architecture import (
    architecture_of,
    folder_architecture,
    published,
    published_architecture,
)
from danceflow.plan.measure import network_of

CAPABILITIES = ("t2i", "local_edit")


def params_of(family: str, capabilities=CAPABILITIES, **changes) -> Params:
    data = small_data(capabilities, family__name=family, **changes)
    return parse_params(data, "test")


PIPELINES = {
    "sd3": stock_pipeline,
    "flux2": flux2_pipeline,
    "qwen_image": qwen_image_pipeline,
    "qwen_image21": qwen_image21_pipeline,
    "zimage": zimage_pipeline,
}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_pipelines_folder_is_read_without_its_weights(family: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[family]()
    folder = save_pipeline(pipeline, tmp_path / "pipeline")
    found = folder_architecture(family, folder, edits=False)
    network = network_of(family, found.transformer, found.factor, edits=found.edits)
    assert network.parameters == sum(p.numel() for p in pipeline.transformer.parameters())
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module) and name != "transformer"
    }
    counted = {name: found.frozen[name] for name in parts}
    for name, count in parts.items():
        # A file leaves out the weights that are tied, and holds buffers too.
        assert counted[name] == pytest.approx(count, rel=0.06), name
    opened = open_family(family, folder)
    assert found.factor == opened.codec.factor
    if found.is_padded:
        embeds = opened.condition(["a red circle"]).tensors["prompt_embeds"]
        assert found.prompt_tokens == embeds.shape[1]


def test_teachers_that_were_brought_are_found(tmp_path: Path) -> None:
    pipeline = save_pipeline(zimage_pipeline(), tmp_path / "pipeline")
    teachers = tmp_path / "teachers"
    bring_teachers("zimage", pipeline, {}, teachers, edits=False)
    found = architecture_of(params_of("zimage", ("t2i",)), teachers=teachers)
    assert found.transformer["dim"] == 32
    assert "frozen" in found.origin
    assert architecture_of(params_of("zimage", ("t2i",))).name == "z-image"
    # Teachers of another family, such as the embedded default's, say nothing.
    assert architecture_of(params_of("flux2"), teachers=teachers).name == "flux2-klein-4b"
    with pytest.raises(UsageError, match="takes no source"):
        architecture_of(params_of("zimage"), teachers=teachers)


@pytest.mark.parametrize(
    ("family", "creates", "edits"),
    [
        ("zimage", "z-image", "z-image-omni"),
        ("flux2", "flux2-klein-4b", "flux2-klein-4b"),
        ("qwen_image", "qwen-image", "qwen-image-edit"),
    ],
)
def test_a_family_has_a_usual_model(family: str, creates: str, edits: str) -> None:
    assert architecture_of(params_of(family, ("t2i",))).name == creates
    assert architecture_of(params_of(family)).name == edits


def test_an_sd3_recipe_is_told_by_its_sizes() -> None:
    own = architecture_of(small_params(CAPABILITIES))
    assert not own.is_brought
    assert own.transformer["num_layers"] == 1
    large = {
        "num_layers": 38,
        "num_heads": 38,
        "head_dim": 64,
        "patch_size": 2,
        "sample_size": 128,
        "in_channels": 33,
        "out_channels": 16,
    }
    data = override(small_data(CAPABILITIES), {"family.transformer": large})
    assert architecture_of(parse_params(data, "test")).name == "sd3.5-large"
    # Its own network paints images of its own size only.
    photos = override(small_data(CAPABILITIES), {"data.image_size": 1024})
    assert architecture_of(parse_params(photos, "test")).name == "sd3.5-medium"


def test_bad_models_are_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown model 'z-imag': did you mean 'z-image'"):
        architecture_of(params_of("zimage"), model="z-imag")
    with pytest.raises(UsageError, match="'flux2-klein-4b' is of family 'flux2'"):
        architecture_of(params_of("zimage"), model="flux2-klein-4b")
    with pytest.raises(UsageError, match="'qwen-image' takes no source.*'qwen-image-edit'"):
        architecture_of(params_of("qwen_image"), model="qwen-image")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    for family in ("zimage", "sd3"):
        with pytest.raises(WeightsError, match="holds a FluxPipeline, not a"):
            architecture_of(params_of(family), model=str(tmp_path))
    with pytest.raises(WeightsError, match="cannot be read"):
        folder_architecture("zimage", tmp_path / "nowhere", edits=False)


def test_a_damaged_part_is_an_error(tmp_path: Path) -> None:
    folder = save_pipeline(zimage_pipeline(), tmp_path / "pipeline")
    file = next((folder / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(WeightsError, match=str(file)):
        folder_architecture("zimage", folder, edits=False)


@pytest.mark.parametrize("name", list(published()["models"]))
def test_every_published_model_can_be_built(name: str) -> None:
    model = published()["models"][name]
    found = published_architecture(name, edits=model["edits"])
    assert found.family in TINY_FAMILIES
    assert all(count > 0 for count in found.frozen.values())
    assert found.is_padded == (model["prompt_tokens"] is not None)

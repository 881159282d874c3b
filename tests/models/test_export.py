"""What is exported is loaded back by the stock classes, and gives the student's picture."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stock_cases import CASES, StockCase, picture
from tiny_models import PROMPTS, awake, shake, small_sd3, stock_pipeline
from tiny_stock import SIDE, PictureProcessor, byte_tokenizer
from torch import Tensor

from danceflow.errors import WeightsError
from danceflow.fields import normal, sample
from danceflow.models.adapters.files import ADAPTER_FILE
from danceflow.models.adapters.lora import add_student_adapter, merge_adapter
from danceflow.models.bring import bring_teachers
from danceflow.models.export import COMFYUI_FILE, FORMATS
from danceflow.models.family import ModelFamily, open_family
from danceflow.models.pack import save_adapter_package
from danceflow.models.package import load_package, save_package
from danceflow.models.teachers import Teachers

STEPS = 2
SIZE = (SIDE, SIDE)


def call_sd3(pipeline, prompts, noise, guidance, size, source, **options) -> Tensor:
    assert source is None
    return pipeline(
        list(prompts),
        latents=noise,
        guidance_scale=guidance,
        height=size[0],
        width=size[1],
        **options,
    ).images


EXPORTED = {
    "sd3": StockCase("sd3", stock_pipeline, call_sd3, edits=True),
    **{name: CASES[name] for name in ("flux2", "qwen_image_edit", "zimage_omni")},
}


@dataclass(frozen=True)
class Made:
    """A student that was packaged, and what it makes.

    Attributes:
        case: its stock pipeline.
        package: its folder.
        family: the frozen parts.
        noise: of its picture.
        source: of its picture, if its pipeline takes one.
        images: the student's picture, [1, 3, H, W].
        plain: the base's picture.
    """

    case: StockCase
    package: Path
    family: ModelFamily
    noise: Tensor
    source: Tensor | None
    images: Tensor
    plain: Tensor

    def distance(self, pipeline: Any) -> float:
        """How far a pipeline's picture is from ours, in parts of what the student changes."""
        pipeline.set_progress_bar_config(disable=True)
        found = self.case.call(
            pipeline,
            PROMPTS[:1],
            self.noise,
            1.0,
            SIZE,
            self.source,
            num_inference_steps=STEPS,
            output_type="pt",
        )
        return float((found - self.images).norm() / (self.plain - self.images).norm())


@pytest.fixture(scope="module", params=EXPORTED)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case, folder = EXPORTED[request.param], tmp_path_factory.mktemp(request.param)
    pipeline = case.build()
    pipeline.save_pretrained(folder / "stock")
    if isinstance(processor := getattr(pipeline, "processor", None), PictureProcessor):
        processor.image_processor.save_pretrained(folder / "stock" / "processor")
    bring_teachers(case.family, folder / "stock", {}, folder / "teachers", edits=case.edits)
    teachers = Teachers(folder / "teachers", case.family, ["base"], "cpu")
    family = teachers.family.sized(*SIZE)
    network = family.load_backbone(teachers.folder / "base").eval()
    shake(add_student_adapter(family, network, rank=2, alpha=1.0, seed=0))
    (folder / "student").mkdir()
    meta = {"num_steps": STEPS, "image_sizes": [list(SIZE)], "teachers_digest": teachers.digest}
    save_adapter_package(folder / "student", family, network, teachers, {"base": 1.0}, meta)

    source = None if request.param == "sd3" else picture(1)
    latents = None if source is None else family.encode(source)
    noise = normal(family.latent_shape, [1])
    condition = family.condition(PROMPTS[:1], latents, source)
    student = load_package(folder / "student")
    with torch.no_grad():
        images, plain = (
            family.decode(sample(field, noise, condition, family.grid(STEPS)))
            for field in (student.field, teachers.field("base", 1.0))
        )
    return Made(case, folder / "student", family, noise, source, images, plain)


def test_the_network_is_loaded_by_its_class(made: Made, tmp_path: Path) -> None:
    FORMATS["diffusers"](made.package, tmp_path)
    pipeline = made.case.build()
    kind = type(pipeline.transformer)
    _, network, _ = made.family.for_pipeline(made.family.load_backbone(tmp_path / "transformer"))
    if made.case.family != "sd3":  # no stock pipeline takes a source on further channels
        network = kind.from_pretrained(tmp_path / "transformer")
    else:
        assert kind.from_pretrained(tmp_path / "transformer").config.in_channels == 9
    pipeline.transformer = network.eval()
    assert made.distance(pipeline) < 0.05  # its weights are float16


def test_the_adapter_is_loaded_by_the_pipeline(made: Made, tmp_path: Path) -> None:
    FORMATS["lora"](made.package, tmp_path)
    pipeline = made.case.build()
    assert made.distance(pipeline) > 0.9
    place = tmp_path / "stock" if (tmp_path / "stock").is_dir() else tmp_path
    pipeline.load_lora_weights(place, weight_name=ADAPTER_FILE)
    assert made.distance(pipeline) < 0.02  # the package's base is float16


def test_comfyuis_names_are_read_back_by_the_pipeline(made: Made, tmp_path: Path) -> None:
    FORMATS["comfyui"](made.package, tmp_path)
    tensors = load_file(tmp_path / COMFYUI_FILE)
    assert all(name.startswith("diffusion_model.") for name in tensors)
    joined = {"sd3": "joint_blocks.0.x_block.attn.qkv", "flux2": "double_blocks.0.img_attn.qkv"}
    if (name := joined.get(made.case.family)) is not None:
        assert tensors[f"diffusion_model.{name}.lora_A.weight"].shape[0] == 3 * 2
    pipeline = made.case.build()
    if made.case.family == "sd3":  # which diffusers reads in its own names alone
        translated = made.family.translate_adapter(tensors)
        tensors = {k.replace("diffusion_model", "transformer"): v for k, v in translated.items()}
        pipeline.load_lora_weights(tensors)
    else:
        pipeline.load_lora_weights(tmp_path, weight_name=COMFYUI_FILE)
    assert made.distance(pipeline) < 0.02  # the package's base is float16


def test_the_pipeline_is_loaded_as_a_whole(made: Made, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline
    from transformers import ProcessorMixin

    class Processor(PictureProcessor, ProcessorMixin):  # pipelines take no other kind
        pass

    FORMATS["pipeline"](made.package, tmp_path)
    given = {}
    if (tmp_path / "processor").is_dir():  # its class needs torchvision
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["processor"] == ["transformers", "Qwen2VLProcessor"]
        assert (tmp_path / "processor" / "tokenizer.json").is_file()
        given["processor"] = Processor(byte_tokenizer())
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32, **given)
    assert type(pipeline) is type(made.case.build())
    assert made.distance(pipeline) < 0.05
    assert all("_name_or_path" not in json.loads(f.read_text()) for f in tmp_path.rglob("*.json"))
    # A pipeline that was exported is a base that teachers can be brought on.
    assert open_family(made.case.family, tmp_path).name == made.case.family


def test_a_student_that_was_trained_whole_has_no_adapter(tmp_path: Path) -> None:
    family, student, out = small_sd3(), tmp_path / "student", tmp_path / "out"
    student.mkdir()
    save_package(student, family, awake(family), {"num_steps": 2, "image_sizes": [[16, 16]]})
    for name in ("lora", "comfyui"):
        with pytest.raises(WeightsError, match="--format diffusers writes its network"):
            FORMATS[name](student, out)
    with pytest.raises(WeightsError, match="a model of pixels.*has no stock pipeline"):
        FORMATS["pipeline"](student, out)
    FORMATS["diffusers"](student, out)
    again = family.load_backbone(out / "transformer").state_dict()
    for name, value in awake(family).state_dict().items():
        torch.testing.assert_close(again[name], value, rtol=2e-3, atol=2e-3)


def test_a_student_of_the_earlier_layout_is_exported(tmp_path: Path) -> None:
    """Its network lies merged beside its adapter."""
    family, student = small_sd3(), tmp_path / "student"
    network = awake(family)
    shake(add_student_adapter(family, network, rank=2, alpha=2.0, seed=0))
    student.mkdir()
    family.export_adapter(network, student / "adapter")
    save_package(student, family, merge_adapter(network), {"num_steps": 2})
    FORMATS["diffusers"](student, tmp_path / "network")
    FORMATS["lora"](student, tmp_path / "adapter")
    assert (tmp_path / "network" / "transformer" / "config.json").is_file()
    assert (tmp_path / "adapter" / ADAPTER_FILE).is_file()

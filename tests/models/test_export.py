"""What is exported is loaded back by the stock classes, and gives the student's picture."""

import json
import shutil
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
from danceflow.models.package import load_package, read_manifest, save_package, write_manifest
from danceflow.models.teachers import Teachers

STEPS = 2
SIDES = {"qwen_image21": 2 * SIDE}  # else as small as most models' pictures can be


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
    **{name: CASES[name] for name in ("flux2", "qwen_image_edit", "qwen_image21", "zimage_omni")},
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
            self.family.image_size,
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
        processor.tokenizer.save_pretrained(folder / "stock" / "processor")
    bring_teachers(case.family, folder / "stock", {}, folder / "teachers", edits=case.edits)
    teachers = Teachers(folder / "teachers", case.family, ["base"], "cpu")
    side = SIDES.get(case.family, SIDE)
    family = teachers.family.sized(side, side)
    network = family.load_backbone(teachers.folder / "base").eval()
    shake(add_student_adapter(family, network, rank=2, alpha=1.0, seed=0))
    (folder / "student").mkdir()
    meta = {"num_steps": STEPS, "image_sizes": [[side, side]], "teachers_digest": teachers.digest}
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


# ComfyUI's layers of the first block (comfy/lora.py, comfy/utils.py and comfy/ldm there, 2026-11).
# What a file names otherwise is told in ComfyUI's log, and left out.
COMFYUIS = {
    "sd3": {
        *(f"joint_blocks.0.{part}.{name}" for part in ("x_block.attn", "x_block.attn2",
          "context_block.attn") for name in ("qkv", "proj")),
        *(f"joint_blocks.0.{part}_block.mlp.{name}" for part in ("x", "context")
          for name in ("fc1", "fc2")),
    },
    "flux2": {
        *(f"double_blocks.0.{part}_attn.{name}" for part in ("img", "txt")
          for name in ("qkv", "proj")),
        *(f"double_blocks.0.{part}_mlp.{name}" for part in ("img", "txt") for name in (0, 2)),
    },
    "qwen_image": {
        *(f"transformer_blocks.0.attn.to_{name}" for name in ("q", "k", "v", "out.0", "add_out")),
        *(f"transformer_blocks.0.attn.add_{name}_proj" for name in "qkv"),
        *(f"transformer_blocks.0.{part}_mlp.net.{name}" for part in ("img", "txt")
          for name in ("0.proj", "2")),
    },
    "qwen_image21": {
        *(f"transformer_blocks.0.attn.to_{name}" for name in ("q", "k", "v", "out.0")),
        *(f"transformer_blocks.0.img_mlp.{name}" for name in ("proj", "gate_layer", "out")),
    },
    "zimage": {
        *(f"{part}.0.attention.{name}" for part in ("layers", "siglip_refiner")
          for name in ("qkv", "out")),
        *(f"{part}.0.feed_forward.{name}" for part in ("layers", "siglip_refiner")
          for name in ("w1", "w2", "w3")),
    },
}  # fmt: skip


def test_every_layer_of_comfyuis_file_is_one_of_comfyui(made: Made, tmp_path: Path) -> None:
    FORMATS["comfyui"](made.package, tmp_path)
    tensors = load_file(tmp_path / COMFYUI_FILE)
    family = made.case.family
    prefix = "transformer." if family == "qwen_image21" else "diffusion_model."
    assert all(name.startswith(prefix) for name in tensors)
    layers = {name.removeprefix(prefix).rpartition(".lora_")[0] for name in tensors}
    wanted = COMFYUIS[family]
    starts = tuple(name.partition(".0.")[0] + ".0." for name in wanted)
    assert {layer for layer in layers if layer.startswith(starts)} == wanted
    for layer in layers:
        if layer.endswith("qkv"):  # of three layers, each of its own rank
            assert tensors[f"{prefix}{layer}.lora_A.weight"].shape[0] == 3 * 2


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Z-Image's tensors by diffusers' names: thirds of B's rows, each with the whole A."""
    found = {}
    for key, value in tensors.items():
        name = key.replace("attention.out.", "attention.to_out.0.")
        if ".qkv." not in name:
            found[name] = value
            continue
        thirds = value.chunk(3) if ".lora_B." in name else [value] * 3
        for part, third in zip("qkv", thirds, strict=True):
            found[name.replace(".qkv.", f".to_{part}.")] = third.contiguous()
    return found


def test_comfyuis_names_are_read_back_by_the_pipeline(made: Made, tmp_path: Path) -> None:
    FORMATS["comfyui"](made.package, tmp_path)
    pipeline = made.case.build()
    tensors = load_file(tmp_path / COMFYUI_FILE)
    if made.case.family == "sd3":  # which diffusers reads in its own names alone
        translated = made.family.translate_adapter(tensors)
        tensors = {k.replace("diffusion_model", "transformer"): v for k, v in translated.items()}
        pipeline.load_lora_weights(tensors)
    elif made.case.family == "zimage":  # of which it knows no joined layers
        pipeline.load_lora_weights(apart(tensors))
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
        number = 3 if made.case.family == "qwen_image21" else 2
        assert index["processor"] == ["transformers", f"Qwen{number}VLProcessor"]
        assert (tmp_path / "processor" / "tokenizer.json").is_file()
        images = {"patch_size": 16, "min_pixels": 1024} if number == 3 else {}
        given["processor"] = Processor(byte_tokenizer(), **images)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32, **given)
    assert type(pipeline) is type(made.case.build())
    assert made.distance(pipeline) < 0.05
    assert all("_name_or_path" not in json.loads(f.read_text()) for f in tmp_path.rglob("*.json"))
    # A pipeline that was exported is a base that teachers can be brought on.
    assert open_family(made.case.family, tmp_path).name == made.case.family


def test_the_pipeline_has_the_students_shift(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.package, tmp_path / "student")
    meta = read_manifest(tmp_path / "student")
    del meta["files"]
    write_manifest(tmp_path / "student", {**meta, "shift": 1.5})
    FORMATS["pipeline"](tmp_path / "student", tmp_path / "pipeline")
    config = json.loads((tmp_path / "pipeline/scheduler/scheduler_config.json").read_text())
    assert config["shift"] == 1.5


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

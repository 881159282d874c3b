"""A stock ``StableDiffusion3Pipeline`` folder opens, and gives the stock pipeline's own images.

Both sides compute in float32 on the same kernels; they differ by the order of the guidance batch
and of a few multiplications, so agreement is asked for within 1e-5.
"""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_models import PROMPTS, shake, stock_pipeline

from danceflow.errors import WeightsError
from danceflow.fields import normal, sample, shifted_grid
from danceflow.models.adapters.lora import AdapterField, add_student_adapter, load_adapter
from danceflow.models.family import open_family
from danceflow.models.package import load_package, save_package

EXACT = {"rtol": 1e-5, "atol": 1e-5}
SIZE = 16  # pixels

VARIANTS = {
    "t5": {},
    "no_t5": {"with_t5": False},
    "unshifted": {"shift": 1.0},
    "dynamic_shift": {"use_dynamic_shifting": True},
}


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def stock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    pipeline = stock_pipeline(**VARIANTS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    pipeline.save_pretrained(folder)
    family = open_family("sd3", folder)
    return pipeline, family, family.load_backbone(folder / "transformer").eval()


@pytest.fixture(scope="module")
def stock_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    stock_pipeline().save_pretrained(folder)
    return folder


def images_of(pipeline, noise, guidance: float, output: str, num_steps: int = 4):
    return pipeline(
        list(PROMPTS),
        latents=noise,
        guidance_scale=guidance,
        num_inference_steps=num_steps,
        height=SIZE,
        width=SIZE,
        output_type=output,
    ).images


def ours(family, backbone, noise, guidance: float, num_steps: int = 4):
    field = family.guided(family.field(backbone), guidance)
    return sample(field, noise, family.condition(PROMPTS), family.grid(num_steps))


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_samples_are_the_stock_pipelines(stock, guidance: float) -> None:
    pipeline, family, backbone = stock
    noise = normal(family.latent_shape, [1, 2])
    latents = ours(family, backbone, noise, guidance)
    assert (latents - noise).abs().mean() > 0.1
    expected = images_of(pipeline, noise, guidance, "latent")
    torch.testing.assert_close(latents, expected, **EXACT)
    torch.testing.assert_close(
        family.decode(latents), images_of(pipeline, noise, guidance, "pt"), **EXACT
    )


def test_conditions_are_the_stock_pipelines(stock) -> None:
    pipeline, family, _ = stock
    embeds, _, pooled, _ = pipeline.encode_prompt(
        list(PROMPTS), None, None, do_classifier_free_guidance=False
    )
    condition = family.condition(PROMPTS).tensors
    torch.testing.assert_close(condition["prompt_embeds"], embeds, **EXACT)
    torch.testing.assert_close(condition["pooled"], pooled, **EXACT)


@pytest.mark.parametrize("num_steps", [1, 7])
def test_grids_are_the_stock_pipelines(stock, num_steps: int) -> None:
    pipeline, family, _ = stock
    images_of(pipeline, torch.zeros(2, 4, 8, 8), 1.0, "latent", num_steps)
    assert torch.equal(family.grid(num_steps), pipeline.scheduler.sigmas)


def test_a_shifted_grid_is_that_of_the_scheduler_with_this_shift(stock) -> None:
    pipeline, family, _ = stock
    if pipeline.scheduler.config.use_dynamic_shifting:
        with pytest.raises(WeightsError, match=r"picture's size.*set distill\.shift to null"):
            family.shifted(1.5)
        return
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=1.5)
    scheduler.set_timesteps(5)
    assert torch.equal(family.shifted(1.5).grid(5), scheduler.sigmas)


def test_a_stock_grid_is_not_the_shifted_grid(stock_folder: Path) -> None:
    grid = open_family("sd3", stock_folder).grid(28)
    assert grid[-2] < 0.01 < shifted_grid(28, 3.0)[-2]


def test_a_stock_model_predicts_velocities_and_cannot_edit(stock_folder: Path) -> None:
    family = open_family("sd3", stock_folder)
    assert (family.prediction, family.shift) == ("velocity", 3.0)
    assert "source" not in family.condition(PROMPTS).tensors
    assert "pos_embed.proj" not in family.adapter_targets
    z, clean, noise = (normal(family.latent_shape, [seed]) for seed in range(3))
    target = family.target_velocity(z, clean, noise, torch.tensor([0.01]))
    assert torch.equal(target, noise - clean)


def test_any_aspect_ratio_is_the_stock_pipelines(stock) -> None:
    pipeline, family, backbone = stock
    wide = family.sized(SIZE // 2, SIZE)
    noise = normal(wide.latent_shape, [1, 2])
    expected = pipeline(
        list(PROMPTS),
        latents=noise,
        guidance_scale=3.0,
        num_inference_steps=4,
        height=SIZE // 2,
        width=SIZE,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours(wide, backbone, noise, 3.0), expected, **EXACT)


@pytest.fixture
def widened(stock_folder: Path):
    family = open_family("sd3", stock_folder).editing()
    return family, family.load_backbone(stock_folder / "transformer").eval()


def test_a_widened_model_starts_as_the_original(stock_folder: Path, widened) -> None:
    family, backbone = widened
    assert family.takes_source
    assert family.editing() is family
    noise, source = normal(family.latent_shape, [1, 2]), normal(family.latent_shape, [3, 4])
    latents = sample(
        family.guided(family.field(backbone), 4.5),
        noise,
        family.condition(PROMPTS, source),
        family.grid(4),
    )
    expected = images_of(stock_pipeline(), noise, 4.5, "latent")
    torch.testing.assert_close(latents, expected, **EXACT)


def test_a_widened_student_edits_and_its_adapter_serves_the_stock_pipeline(
    stock_folder: Path, widened, tmp_path: Path
) -> None:
    family, backbone = widened
    shake(add_student_adapter(family, backbone, rank=2, alpha=4, seed=0))
    noise, source = normal(family.latent_shape, [1, 2]), normal(family.latent_shape, [3, 4])
    plain = ours(family, backbone, noise, 2.0)
    field = family.guided(family.field(backbone), 2.0)
    edited = sample(field, noise, family.condition(PROMPTS, source), family.grid(4))
    assert (edited - plain).abs().max() > 1e-2
    family.export_adapter(backbone, tmp_path)
    pipeline = stock_pipeline()
    before = images_of(pipeline, noise, 2.0, "latent")
    assert (before - plain).abs().max() > 1e-2
    pipeline.load_lora_weights(tmp_path / "stock")
    torch.testing.assert_close(images_of(pipeline, noise, 2.0, "latent"), plain, **EXACT)
    images = images_of(pipeline, noise, 2.0, "pt")
    torch.testing.assert_close(images, family.decode(plain), **EXACT)
    again = family.load_backbone(stock_folder / "transformer").eval()
    load_adapter(again, tmp_path, "student")
    expected = sample(
        AdapterField(family, again, "student"),
        noise,
        family.condition(PROMPTS, source),
        family.grid(4),
    )
    plain_field = sample(
        family.field(backbone), noise, family.condition(PROMPTS, source), family.grid(4)
    )
    torch.testing.assert_close(expected, plain_field, **EXACT)


def test_a_widened_model_survives_being_packaged(widened, tmp_path: Path) -> None:
    family, backbone = widened
    save_package(tmp_path, family, backbone, {"num_steps": 4})
    package = load_package(tmp_path)
    assert package.family.takes_source
    assert package.family.latent_shape == family.latent_shape


def test_images_become_the_stock_autoencoders_latents(stock_folder: Path) -> None:
    pipeline = stock_pipeline()
    family = open_family("sd3", stock_folder)
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = pipeline.vae.encode(images * 2 - 1).latent_dist.mean
    scale, shift = pipeline.vae.config.scaling_factor, pipeline.vae.config.shift_factor
    torch.testing.assert_close(family.encode(images), (mean - shift) * scale, **EXACT)


def test_a_stock_model_packaged_as_a_student_still_gives_its_images(
    stock_folder: Path, tmp_path: Path
) -> None:
    family = open_family("sd3", stock_folder)
    backbone = family.load_backbone(stock_folder / "transformer")
    save_package(tmp_path, family, backbone, {"num_steps": 4})
    package = load_package(tmp_path)
    noise = normal(family.latent_shape, [1, 2])
    latents = sample(package.field, noise, family.condition(PROMPTS), package.family.grid(4))
    torch.testing.assert_close(latents, ours(family, backbone, noise, 1.0), rtol=0.02, atol=0.02)


def test_weights_in_shards_are_read(stock_folder: Path, tmp_path: Path) -> None:
    family = open_family("sd3", stock_folder)
    whole = family.load_backbone(stock_folder / "transformer")
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    loaded = family.load_backbone(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in whole.state_dict().items())
    shards[0].unlink()
    with pytest.raises(WeightsError, match=rf"{shards[0].name}: weights are missing"):
        family.load_backbone(tmp_path)


def copy_of(folder: Path, place: Path) -> Path:
    """A folder of links to the parts of a pipeline; a part that is changed is copied first."""
    place.mkdir()
    for part in folder.iterdir():
        (place / part.name).symlink_to(part)
    return place


def own_part(folder: Path, name: str) -> Path:
    part = folder / name
    original = part.resolve()
    part.unlink()
    part.mkdir()
    for file in original.iterdir():
        (part / file.name).write_bytes(file.read_bytes())
    return part


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="neither danceflow_family.json nor model_index.json"):
        open_family("sd3", tmp_path)


def test_another_pipeline_is_told(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(WeightsError, match="holds a FluxPipeline, not an SD3 pipeline"):
        open_family("sd3", tmp_path)


@pytest.mark.parametrize(
    ("part", "file", "values", "message"),
    [
        ("transformer", "config.json", {"_class_name": "UNet"}, "expected a SD3Transformer2DModel"),
        (
            "transformer",
            "config.json",
            {"in_channels": 5},
            "channels, or 8 with a source image, or 9",
        ),
        ("scheduler", "scheduler_config.json", {"_class_name": "DDIM"}, "found DDIM"),
        ("scheduler", "scheduler_config.json", {"stochastic_sampling": True}, "without stochastic"),
        ("text_encoder", "config.json", {"intermediate_size": 20}, "text_encoder: "),
        ("text_encoder_2", "config.json", {"num_hidden_layers": 3}, "text_encoder_2: .* missing"),
        ("vae", "config.json", {"latent_channels": 8}, "vae: "),
        ("vae", "config.json", {"layers_per_block": 2}, "vae: .* found None"),
    ],
)
def test_parts_that_do_not_fit_are_told(
    stock_folder: Path, tmp_path: Path, part: str, file: str, values: dict, message: str
) -> None:
    folder = copy_of(stock_folder, tmp_path / "copy")
    change(own_part(folder, part) / file, **values)
    with pytest.raises(WeightsError, match=message):
        open_family("sd3", folder).frozen_networks()


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("transformer", "config.json"),
        ("scheduler", "scheduler_config.json"),
        ("text_encoder", "model.safetensors"),
        ("text_encoder_3", "model.safetensors"),
        ("text_encoder_2", "config.json"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("tokenizer", "tokenizer.json"),
    ],
)
def test_missing_and_truncated_files_are_told(
    stock_folder: Path, tmp_path: Path, part: str, file: str
) -> None:
    folder = copy_of(stock_folder, tmp_path / "copy")
    path = own_part(folder, part) / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=part):
        open_family("sd3", folder).frozen_networks()
    for left in path.parent.iterdir():
        left.unlink()
    with pytest.raises(WeightsError, match=part):
        open_family("sd3", folder).frozen_networks()


def test_a_scheduler_that_ends_above_zero_noise_is_told(stock_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(stock_folder, tmp_path / "copy")
    change(own_part(folder, "scheduler") / "scheduler_config.json", invert_sigmas=True)
    with pytest.raises(WeightsError, match="do not fall from 1 to 0"):
        open_family("sd3", folder).grid(4)


def test_a_setting_that_is_missing_is_told(stock_folder: Path, tmp_path: Path) -> None:
    family = open_family("sd3", stock_folder)
    family.save_frozen(tmp_path)
    settings = json.loads((tmp_path / "danceflow_family.json").read_text())
    del settings["prediction"]
    (tmp_path / "danceflow_family.json").write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match=r"danceflow_family.json: the setting 'prediction'"):
        open_family("sd3", tmp_path)

"""A stock pipeline's folder opens, and gives the stock pipeline's own latents and images.

Both sides compute in float32 on the same kernels. They differ by the order of batches and of a few
multiplications, and guidance multiplies that, so agreement is asked for within 1e-4, of latents
with a standard deviation near 1 and of images in [0, 1].
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stock_cases import CASES, StockCase, picture
from tiny_models import PROMPTS, shake
from tiny_stock import stock_family

from danceflow.errors import WeightsError
from danceflow.fields import Condition, normal, sample
from danceflow.models.adapters.lora import (
    ADAPTER_FILE,
    AdapterField,
    add_student_adapter,
    load_adapter,
    merge_adapter,
)
from danceflow.models.family import open_family
from danceflow.models.memory import Memory
from danceflow.models.package import load_package, save_package
from danceflow.models.quantised import Base

TIGHT = {"rtol": 1e-4, "atol": 1e-4}
STEPS = 3
SQUARE, WIDE = "square", "wide"


class Opened:
    """A pipeline, the family of its folder, and the family's own transformer."""

    def __init__(self, case: StockCase, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.pipeline = case.build()
        self.family = stock_family(case.family, self.pipeline, folder)
        self.backbone = self.network()
        side, _ = self.family.image_size
        self.sizes = {SQUARE: (side, side), WIDE: (side // 2, side)}

    def network(self) -> torch.nn.Module:
        return self.family.load_backbone(self.folder / "transformer").eval().requires_grad_(False)

    def stock(self, prompts, noise, guidance, size=SQUARE, source=None, output="latent"):
        return self.case.call(
            self.pipeline,
            list(prompts),
            noise,
            guidance,
            self.sizes[size],
            source,
            num_inference_steps=STEPS,
            output_type=output,
        )

    def ours(self, noise, condition: Condition, guidance, size=SQUARE, field=None):
        family = self.family.sized(*self.sizes[size])
        plain = family.field(self.backbone) if field is None else field
        with torch.no_grad():
            return sample(family.guided(plain, guidance), noise, condition, family.grid(STEPS))

    def noise(self, size=SQUARE):
        return normal(self.family.sized(*self.sizes[size]).latent_shape, [1, 2])

    def condition(self, sources=None) -> Condition:
        if sources is None:
            return self.family.condition(PROMPTS)
        images = torch.cat(sources)
        return self.family.condition(PROMPTS, self.family.encode(images), images)


@pytest.fixture(scope="module", params=CASES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(CASES[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture
def creating(opened: Opened) -> Opened:
    if not opened.case.creates:
        pytest.skip("this pipeline needs a source")
    return opened


@pytest.fixture
def editing(opened: Opened) -> Opened:
    if not opened.case.edits:
        pytest.skip("this pipeline takes no source")
    return opened


@pytest.mark.parametrize("size", [SQUARE, WIDE])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images_from_text_are_the_stock_pipelines(creating, guidance, size) -> None:
    noise = creating.noise(size)
    latents = creating.ours(noise, creating.condition(), guidance, size)
    assert (latents - noise).abs().mean() > 0.1
    torch.testing.assert_close(latents, creating.stock(PROMPTS, noise, guidance, size), **TIGHT)
    expected = creating.stock(PROMPTS, noise, guidance, size, output="pt")
    torch.testing.assert_close(creating.family.decode(latents), expected, **TIGHT)


SOURCES = {"square": (64, 64), "wide": (64, 96), "tall": (96, 64)}
EDITS = {
    "square_to_wide": ("square", WIDE, 1.0),
    "square_to_wide_guided": ("square", WIDE, 3.0),
    "wide_to_square_guided": ("wide", SQUARE, 3.0),
    "tall_to_wide": ("tall", WIDE, 1.0),
}


@pytest.mark.parametrize(("shape", "size", "guidance"), EDITS.values(), ids=EDITS)
def test_edits_are_the_stock_pipelines(editing, shape: str, size, guidance: float) -> None:
    sources, noise = [picture(seed, SOURCES[shape]) for seed in (1, 2)], editing.noise(size)
    latents = editing.ours(noise, editing.condition(sources), guidance, size)
    if editing.case.creates:
        plain = editing.ours(noise, editing.condition(), guidance, size)
        assert (latents - plain).abs().max() > 1e-3
    for row, source in enumerate(sources):  # the stock pipelines take one source a call
        at = slice(row, row + 1)
        given = (PROMPTS[at], noise[at], guidance, size, source)
        torch.testing.assert_close(latents[at], editing.stock(*given), **TIGHT)
        expected = editing.stock(*given, output="pt")
        torch.testing.assert_close(editing.family.decode(latents[at]), expected, **TIGHT)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_edits_of_several_pictures_are_the_stock_pipelines(editing, guidance: float) -> None:
    family, noise = editing.family, editing.noise()
    pictures = [picture(seed, SOURCES[shape]) for seed, shape in enumerate(SOURCES, 1)]
    latents = [family.encode(image) for image in pictures]
    if family.max_sources == 1:
        with pytest.raises(WeightsError, match="model takes one source, and 3 are given"):
            family.condition(PROMPTS[:1], latents, pictures)
        return
    # Two rows of a batch: one has all three pictures, the other the first and the third.
    both = [torch.cat([image, image]) for image in latents]
    both[1][1] = 0
    seen = [torch.cat([image, image]) for image in pictures]
    found = editing.ours(noise, family.condition(PROMPTS, both, seen), guidance)
    for row, given in enumerate((pictures, [pictures[0], pictures[2]])):
        at = slice(row, row + 1)
        stock = (PROMPTS[at], noise[at], guidance, SQUARE, given)
        torch.testing.assert_close(found[at], editing.stock(*stock), **TIGHT)
        expected = editing.stock(*stock, output="pt")
        torch.testing.assert_close(family.decode(found[at]), expected, **TIGHT)
    other = editing.ours(noise, family.condition(PROMPTS, both[:1], seen[:1]), guidance)
    assert (other - found).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    with pytest.raises(WeightsError, match="takes 3 sources, and 4 are given"):
        family.condition(PROMPTS, [*both, both[0]], [*seen, seen[0]])


def test_the_source_and_its_place_count(editing) -> None:
    field, z = editing.family.field(editing.backbone), editing.noise()
    sigma = torch.tensor([0.8, 0.4])
    one = field(z, sigma, editing.condition([picture(1), picture(2)]))
    other = field(z, sigma, editing.condition([picture(2), picture(1)]))
    assert (one - other).abs().amax(dim=(1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("num_steps", [2, 7])
@pytest.mark.parametrize("name", CASES)
def test_grids_are_the_stock_pipelines(name: str, num_steps: int, tmp_path: Path) -> None:
    case = CASES[name]
    for number, options in enumerate(case.scheduler):
        pipeline = case.build(**options)
        family = stock_family(case.family, pipeline, tmp_path / str(number))
        side, _ = family.image_size
        family = family.sized(side // 2, side)
        case.call(
            pipeline,
            list(PROMPTS[:1]),
            normal(family.latent_shape, [1]),
            1.0,
            (side // 2, side),
            None if case.creates else picture(1),
            num_inference_steps=num_steps,
            output_type="latent",
        )
        torch.testing.assert_close(
            family.grid(num_steps), pipeline.scheduler.sigmas, atol=1e-6, rtol=0
        )


def test_a_student_adapter_serves_the_stock_pipeline(opened, tmp_path: Path) -> None:
    student = opened.network()
    params = add_student_adapter(opened.family, student, rank=2, alpha=1, seed=0)
    shake(params)
    source = [picture(1), picture(2)] if opened.case.edits else None
    noise, field = opened.noise(), opened.family.field(student)
    latents = opened.ours(noise, opened.condition(source), 1.0, field=field)
    opened.family.export_adapter(student, tmp_path)
    loaded = opened.network()
    report = load_adapter(loaded, tmp_path, "student")
    assert 2 * len(report.modules) == len(params)
    again = AdapterField(opened.family, loaded, "student")
    shared = opened.ours(noise, opened.condition(source), 1.0, field=again)
    torch.testing.assert_close(shared, latents, **TIGHT)
    given = (PROMPTS[:1], noise[:1], 1.0, SQUARE, None if source is None else source[0])
    before, images = opened.stock(*given), opened.family.decode(latents[:1])
    assert (before - latents[:1]).abs().max() > 1e-2
    assert (opened.stock(*given, output="pt") - images).abs().max() > 1e-3
    opened.pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
    try:
        torch.testing.assert_close(opened.stock(*given), latents[:1], **TIGHT)
        torch.testing.assert_close(opened.stock(*given, output="pt"), images, **TIGHT)
    finally:
        opened.pipeline.unload_lora_weights()
    torch.testing.assert_close(opened.stock(*given), before, **TIGHT)


@pytest.mark.parametrize(("base", "bound"), [("int8", 0.02), ("nf4", 0.45)])
def test_an_adapter_of_a_quantised_base_serves_the_stock_pipeline(
    opened, tmp_path: Path, base: Base, bound: float
) -> None:
    family, noise = opened.family, opened.noise()
    memory = Memory(base=base)
    frozen = memory.load(family, opened.folder / "transformer", shared=True)
    source = [picture(1), picture(2)] if opened.case.edits else None
    condition, sigma = opened.condition(source), torch.tensor([0.9, 0.3])
    with torch.no_grad():
        exact = family.field(opened.backbone)(noise, sigma, condition)
        found = family.field(frozen)(noise, sigma, condition)
    assert 0 < (found - exact).norm() < bound * exact.norm()
    reached = []
    for network in (frozen, opened.network()):
        factors = add_student_adapter(family, network, rank=2, alpha=1, seed=0)
        shake(factors)
        assert {factor.dtype for factor in factors} == {torch.float32}
        family.field(network)(noise, sigma, condition).square().sum().backward()
        reached.append([f.grad is not None and bool(f.grad.any()) for f in factors])
        assert all(p.grad is None for n, p in network.named_parameters() if "lora" not in n)
    assert reached[0] == reached[1]  # some texts' last factors move nothing, quantised or not
    assert sum(reached[0]) > len(reached[0]) / 2
    family.export_adapter(frozen, tmp_path)
    plain = opened.network()
    load_adapter(plain, tmp_path, "student")
    latents = opened.ours(noise, condition, 1.0, field=AdapterField(family, plain, "student"))
    opened.pipeline.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
    try:
        given = (PROMPTS[:1], noise[:1], 1.0, SQUARE, None if source is None else source[0])
        torch.testing.assert_close(opened.stock(*given), latents[:1], **TIGHT)
    finally:
        opened.pipeline.unload_lora_weights()


def test_a_packaged_student_gives_its_images(opened, tmp_path: Path) -> None:
    student = opened.network()
    shake(add_student_adapter(opened.family, student, rank=2, alpha=4, seed=0))
    save_package(tmp_path, opened.family, merge_adapter(student), {"num_steps": STEPS})
    package = load_package(tmp_path)
    assert package.family.image_size == opened.sizes[SQUARE]
    source = [picture(1), picture(2)] if opened.case.edits else None
    condition, z = opened.condition(source), opened.noise()
    sigma = torch.tensor([0.9, 0.3])
    with torch.no_grad():
        expected = opened.family.field(student)(z, sigma, condition)
        found = package.field(z, sigma, condition)
    assert (found - expected).norm() < 0.02 * expected.norm()  # weights are stored as float16


def test_another_pipeline_is_told(opened, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="neither danceflow_family.json nor model_index.json"):
        open_family(opened.case.family, tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(WeightsError, match="holds a FluxPipeline, not a"):
        open_family(opened.case.family, tmp_path)


def test_parts_that_are_missing_are_named(opened, tmp_path: Path) -> None:
    parts = [path for path in opened.folder.iterdir() if path.is_dir()]
    for missing in parts:
        folder = tmp_path / missing.name
        folder.mkdir()
        for path in opened.folder.iterdir():
            if path != missing:
                (folder / path.name).symlink_to(path)
        with pytest.raises(WeightsError, match=missing.name):
            open_family(opened.case.family, folder)


def test_a_setting_that_is_missing_is_told(opened, tmp_path: Path) -> None:
    opened.family.save_frozen(tmp_path)
    path = tmp_path / "danceflow_family.json"
    settings = json.loads(path.read_text())
    del settings["scheduler"]
    path.write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match=r"danceflow_family.json: the setting 'scheduler'"):
        open_family(opened.case.family, tmp_path)


def test_adapters_in_the_original_codes_names_are_translated(tmp_path: Path) -> None:
    opened = Opened(CASES["flux2"], tmp_path / "stock")
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    down, up = normal((2, 16), [1])[0], normal((48, 2), [2])[0]
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_file(tensors, tmp_path / "original.safetensors")
    with pytest.raises(WeightsError, match="img_attn.qkv.lora_A.weight belongs to no module"):
        load_adapter(opened.network(), tmp_path / "original.safetensors", "teacher")
    network, translate = opened.network(), opened.family.translate_adapter
    report = load_adapter(network, tmp_path / "original.safetensors", "teacher", translate)
    attention = "transformer_blocks.0.attn."
    assert report.modules == tuple(attention + part for part in ("to_k", "to_q", "to_v"))
    key = network.get_submodule(attention + "to_k")
    assert torch.equal(key.lora_B["teacher"].weight, up[16:32])
    assert torch.equal(key.lora_A["teacher"].weight, down)

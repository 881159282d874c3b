"""Adapters on one frozen base: their start, their files, their switching, their merging."""

import copy
import json
from pathlib import Path

import pytest
import torch
from allocated import Allocated
from safetensors.torch import load_file, save_file
from tiny_models import PROMPTS, awake, shake, small_sd3, stock_pipeline
from torch import nn

from danceflow.errors import WeightsError
from danceflow.fields import normal, sample
from danceflow.models.adapters.lora import (
    ADAPTER_FILE,
    AdapterField,
    adapter_names,
    add_student_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from danceflow.models.family import open_family

SIGMA = torch.tensor([0.9, 0.3])
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def family():
    return small_sd3()


@pytest.fixture(scope="module")
def base(family) -> nn.Module:
    return awake(family)


@pytest.fixture
def backbone(base) -> nn.Module:
    return copy.deepcopy(base)


@pytest.fixture(scope="module")
def inputs(family):
    return normal(family.latent_shape, [1, 2]), SIGMA, family.condition(PROMPTS)


def saved(family, base, folder: Path, seed: int, rank: int = 3, alpha: float = 6.0) -> Path:
    network = copy.deepcopy(base)
    shake(add_student_adapter(family, network, rank, alpha, seed), seed)
    return save_adapter(network, folder)


def flags(backbone) -> dict[str, bool]:
    return {name: param.requires_grad for name, param in backbone.named_parameters()}


def gradients(field, params, inputs, between=lambda: None):
    loss = field(*inputs).square().mean()
    between()
    return torch.autograd.grad(loss, params)


def test_a_new_adapter_changes_nothing_yet(family, base, backbone, inputs) -> None:
    add_student_adapter(family, backbone, rank=2, alpha=2, seed=0)
    plain = family.field(base)(*inputs)
    with torch.no_grad():
        torch.testing.assert_close(family.field(backbone)(*inputs), plain, **CLOSE)


def test_only_the_adapter_is_trainable_and_it_is_all_that_is_returned(family, backbone) -> None:
    backbone.requires_grad_(True)
    params = add_student_adapter(family, backbone, rank=2, alpha=2, seed=0)
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    assert {id(p) for p in params} == {id(p) for p in trainable}
    assert len(params) == len(trainable)


def test_every_projection_and_the_source_input_get_an_adapter(family, backbone) -> None:
    add_student_adapter(family, backbone, rank=2, alpha=2, seed=0)
    adapted = {n.split(".lora_A")[0] for n, _ in backbone.named_parameters() if ".lora_A" in n}
    assert "pos_embed.proj" in adapted
    # The last block drops the prompt's tokens; it has no output for them.
    first, last = (
        {n.removeprefix(f"transformer_blocks.{i}.") for n in adapted if f"blocks.{i}." in n}
        for i in range(2)
    )
    attention = {f"attn.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0")}
    prompt = {f"attn.{n}" for n in ("add_q_proj", "add_k_proj", "add_v_proj")}
    assert last == attention | prompt | {"ff.net.0.proj", "ff.net.2"}
    assert first - last == {"attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2"}


def test_the_source_gets_a_gradient_though_it_starts_at_zero_weight(family) -> None:
    backbone = family.new_backbone(0)
    params = add_student_adapter(family, backbone, rank=2, alpha=2, seed=0)
    condition = family.condition(PROMPTS, normal(family.latent_shape, [3, 4]))
    z = normal(family.latent_shape, [1, 2])
    before = family.field(backbone)(z, SIGMA, family.condition(PROMPTS))
    optimizer = torch.optim.SGD(params, lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        family.field(backbone)(z, SIGMA, condition).square().mean().backward()
        optimizer.step()
    edited = family.field(backbone)(z, SIGMA, condition)
    blank = family.field(backbone)(z, SIGMA, family.condition(PROMPTS))
    assert not torch.allclose(edited, blank)
    assert not torch.allclose(blank, before)


def test_the_start_is_gaussian_and_a_function_of_the_seed_alone(family, base) -> None:
    def start(seed: int, rank: int = 4):
        backbone = copy.deepcopy(base)
        add_student_adapter(family, backbone, rank=rank, alpha=rank, seed=seed)
        return {n: p for n, p in backbone.named_parameters() if "lora_" in n}

    torch.manual_seed(7)
    state = torch.get_rng_state()
    one = start(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    same, other = start(0), start(1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(not torch.equal(one[n], other[n]) for n in one if "lora_A" in n)
    assert all(not value.any() for name, value in one.items() if "lora_B" in name)
    drawn = torch.cat([value.flatten() for name, value in one.items() if "lora_A" in name])
    drawn = drawn.detach()
    assert abs(float(drawn.mean())) < 0.02
    assert float(drawn.std()) == pytest.approx(1 / 4, rel=0.1)


def test_factors_are_float32_on_a_bfloat16_base(family, base, inputs) -> None:
    backbone = copy.deepcopy(base).to(torch.bfloat16)
    params = add_student_adapter(family, backbone, rank=2, alpha=2, seed=0)
    shake(params)
    assert {p.dtype for p in params} == {torch.float32}
    velocity = family.field(backbone)(*inputs)
    assert velocity.dtype == torch.float32
    grads = torch.autograd.grad(velocity.square().mean(), params)
    assert {g.dtype for g in grads} == {torch.float32}
    assert all(g.isfinite().all() for g in grads)


def test_a_backbone_without_targets_is_told(family) -> None:
    with pytest.raises(WeightsError, match="no module of Sequential ends in to_q"):
        add_student_adapter(family, nn.Sequential(nn.Linear(2, 2)), rank=2, alpha=2, seed=0)


def test_a_saved_adapter_is_the_same_when_loaded(family, base, backbone, tmp_path, inputs) -> None:
    trained = copy.deepcopy(base)
    shake(add_student_adapter(family, trained, rank=3, alpha=6, seed=0))
    path = save_adapter(trained, tmp_path / "adapter")
    assert path == tmp_path / "adapter" / ADAPTER_FILE
    report = load_adapter(backbone, tmp_path / "adapter", "local")
    assert (report.name, report.rank, report.alpha) == ("local", 3, 6.0)
    tensors = load_file(path)
    assert len(tensors) == 2 * len(report.modules)
    matched = f"{len(report.modules)} of {report.num_candidates} modules"
    said = "said by transformer.lora_alpha of lora_adapter_metadata"
    assert str(report) == f"adapter 'local' (diffusers): {matched}, rank 3, alpha 6 ({said})"
    assert len(report.modules) < report.num_candidates
    with torch.no_grad():
        expected = family.field(trained)(*inputs)
    loaded = AdapterField(family, backbone, "local")(*inputs)
    assert torch.equal(loaded, expected)
    assert save_adapter(backbone, tmp_path / "again", "local").read_bytes() == path.read_bytes()


def test_a_loaded_adapter_is_frozen_and_sleeps(family, base, backbone, tmp_path, inputs) -> None:
    path = saved(family, base, tmp_path, 1)
    load_adapter(backbone, path, "local")
    assert not any(flags(backbone).values())
    assert torch.equal(family.field(backbone)(*inputs), family.field(base)(*inputs))


def test_one_base_serves_many_adapters(family, base, backbone, tmp_path, inputs) -> None:
    paths = {seed: saved(family, base, tmp_path / str(seed), seed) for seed in (1, 2)}
    alone = {}
    for seed, path in paths.items():
        network = copy.deepcopy(base)
        load_adapter(network, path, "only")
        alone[seed] = AdapterField(family, network, "only")(*inputs)
        load_adapter(backbone, path, f"teacher{seed}")
    assert adapter_names(backbone) == ("teacher1", "teacher2")
    fields = {seed: AdapterField(family, backbone, f"teacher{seed}") for seed in paths}
    bare = AdapterField(family, backbone, None)
    plain = family.field(base)(*inputs)
    for seed in (1, 2, 1):
        assert torch.equal(fields[seed](*inputs), alone[seed])
        assert torch.equal(bare(*inputs), plain)
    assert not torch.allclose(alone[1], alone[2])


@pytest.mark.parametrize("student_first", [True, False])
def test_asking_teachers_leaves_the_student_as_it_was(
    family, base, backbone, tmp_path, inputs, student_first: bool
) -> None:
    path = saved(family, base, tmp_path, 1)
    if not student_first:
        load_adapter(backbone, path, "teacher")
    params = add_student_adapter(family, backbone, rank=2, alpha=2, seed=0)
    if student_first:
        load_adapter(backbone, path, "teacher")
    shake(params)
    before = flags(backbone)
    assert sum(before.values()) == len(params)
    student, teacher = family.field(backbone), AdapterField(family, backbone, "teacher")
    velocity = student(*inputs)
    target = teacher(*inputs)
    assert not target.requires_grad
    assert flags(backbone) == before
    assert torch.equal(student(*inputs), velocity)
    assert not torch.allclose(target, velocity)


def test_a_teacher_that_fails_leaves_the_student_as_it_was(
    family, base, backbone, tmp_path, inputs
) -> None:
    params = add_student_adapter(family, backbone, rank=2, alpha=2, seed=0)
    load_adapter(backbone, saved(family, base, tmp_path, 1), "teacher")
    shake(params)
    velocity, before = family.field(backbone)(*inputs), flags(backbone)
    z, sigma, condition = inputs
    with pytest.raises(RuntimeError):
        AdapterField(family, backbone, "teacher")(z[:, :1], sigma, condition)
    assert flags(backbone) == before
    assert torch.equal(family.field(backbone)(*inputs), velocity)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_teachers_between_forward_and_backward_do_not_change_gradients(
    family, base, backbone, tmp_path, inputs, checkpointing: bool
) -> None:
    params = add_student_adapter(family, backbone, rank=2, alpha=2, seed=0)
    shake(params)
    load_adapter(backbone, saved(family, base, tmp_path, 1), "teacher")
    student, teacher = family.field(backbone), AdapterField(family, backbone, "teacher")
    alone = gradients(student, params, inputs)
    if checkpointing:
        backbone.enable_gradient_checkpointing()
        backbone.train()
    asked = gradients(student, params, inputs, between=lambda: teacher(*inputs))
    for one, other in zip(alone, asked, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    # The last block drops the prompt's tokens, so their query there has no effect.
    assert sum(bool(one.any()) for one in alone) == len(alone) - 2


def test_a_merged_student_is_a_plain_backbone_with_the_same_field(
    family, backbone, tmp_path, inputs
) -> None:
    params = add_student_adapter(family, backbone, rank=2, alpha=4, seed=0)
    shake(params)
    with torch.no_grad():
        expected = family.field(backbone)(*inputs)
    merged = merge_adapter(backbone)
    assert merged.state_dict().keys() == family.new_backbone(0).state_dict().keys()
    assert adapter_names(merged) == ()
    assert not any(flags(merged).values())
    torch.testing.assert_close(family.field(merged)(*inputs), expected, **CLOSE)
    family.save_backbone(merged, tmp_path)
    loaded = family.load_backbone(tmp_path).eval()
    with torch.no_grad():
        half = family.field(loaded)(*inputs)
        assert torch.equal(family.field(backbone)(*inputs), expected)
    assert (half - expected).norm() < 0.01 * expected.norm()
    assert sum(flags(backbone).values()) == len(params)


def test_merging_takes_the_named_adapter_alone(family, base, backbone, tmp_path, inputs) -> None:
    shake(add_student_adapter(family, backbone, rank=2, alpha=2, seed=0))
    load_adapter(backbone, saved(family, base, tmp_path, 1), "teacher")
    expected = AdapterField(family, backbone, "teacher")(*inputs)
    merged = merge_adapter(backbone, "teacher")
    torch.testing.assert_close(family.field(merged)(*inputs), expected, **CLOSE)


def test_a_merged_bfloat16_student_is_float32(family, base) -> None:
    backbone = copy.deepcopy(base).to(torch.bfloat16)
    shake(add_student_adapter(family, backbone, rank=2, alpha=2, seed=0))
    assert {p.dtype for p in merge_adapter(backbone).parameters()} == {torch.float32}


def test_merging_makes_one_copy_alone(family, base, tmp_path) -> None:
    """What is packaged is float16 from the start: the same files, and no network beside it."""
    backbone = copy.deepcopy(base).to(torch.bfloat16)
    shake(add_student_adapter(family, backbone, rank=2, alpha=4, seed=0))
    family.save_backbone(merge_adapter(backbone), tmp_path / "whole")
    sizes = [value.numel() for value in base.state_dict().values()]
    with Allocated(backbone) as allocated:
        merged = merge_adapter(backbone, dtype=torch.float16)
    family.save_backbone(merged, tmp_path / "half")
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "half" / path.name).read_bytes() == path.read_bytes()
    assert allocated.num_bytes(torch.bfloat16) == 0
    half = allocated.num_bytes(torch.float16)
    adapters = sum(p.numel() for n, p in backbone.named_parameters() if "lora_" in n)
    assert half == 2 * (sum(sizes) + adapters)


def test_an_adapter_that_is_not_there_is_told(family, backbone, base, tmp_path) -> None:
    for use in (
        lambda: AdapterField(family, backbone, "local"),
        lambda: merge_adapter(backbone),
        lambda: save_adapter(backbone, tmp_path, "local"),
    ):
        with pytest.raises(WeightsError, match=r"no adapter '\w+'; known are none"):
            use()
    path = saved(family, base, tmp_path, 1)
    load_adapter(backbone, path, "local")
    with pytest.raises(WeightsError, match="has an adapter 'local' already"):
        load_adapter(backbone, path, "local")
    with pytest.raises(WeightsError, match="no adapter 'global'; known are local"):
        AdapterField(family, backbone, "global")


def rewritten(path: Path, change, metadata=None) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    return path


def test_an_adapter_that_does_not_fit_is_refused_whole(family, base, tmp_path, inputs) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    changes = {
        "belongs to no module": lambda t: t.update(
            {"transformer.transformer_blocks.9.attn.to_q.lora_A.weight": torch.ones(3, 16)}
        ),
        "text_encoder.x.lora_A.weight belongs to no": lambda t: t.update(
            {"text_encoder.x.lora_A.weight": torch.ones(3, 16)}
        ),
        r"attn.to_q needs factors .* found": lambda t: t.update(
            {f"{name}.lora_A.weight": torch.ones(3, 15)}
        ),
        r"to_q needs factors .*'B': None": lambda t: t.pop(f"{name}.lora_B.weight"),
        r"to_q.beta belongs to no module": lambda t: t.update({f"{name}.beta": torch.ones(1)}),
        r"proj_out needs factors .*'A': None": lambda t: t.update(
            {"transformer.proj_out.alpha": torch.ones(())}
        ),
        "holds no adapter": lambda t: t.clear(),
    }
    for number, (message, change) in enumerate(changes.items()):
        network = copy.deepcopy(base)
        path = rewritten(saved(family, base, tmp_path / str(number), 1), change)
        with pytest.raises(WeightsError, match=message):
            load_adapter(network, path, "local")
        assert adapter_names(network) == ()
        assert network.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(family.field(network)(*inputs), family.field(base)(*inputs))


def test_damaged_and_missing_files_are_told(family, base, backbone, tmp_path) -> None:
    with pytest.raises(WeightsError, match="weights are missing"):
        load_adapter(backbone, tmp_path, "local")
    path = saved(family, base, tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=rf"{ADAPTER_FILE}: weights are missing or truncated"):
        load_adapter(backbone, path, "local")


def test_settings_that_are_not_understood_are_told(family, base, backbone, tmp_path) -> None:
    path = saved(family, base, tmp_path, 1)
    for settings, message in (
        ("{", "cannot be read: no JSON object"),
        ("[]", "cannot be read: no JSON object"),
        ("{}", "is empty"),
        (
            '{"transformer.r": 3}',
            "transformer.lora_alpha of .* cannot be read as a number other than 0: None",
        ),
        ('{"transformer.lora_alpha": 3, "transformer.use_dora": true}', "says use_dora, but"),
    ):
        rewritten(path, lambda _: None, {"lora_adapter_metadata": settings})
        with pytest.raises(WeightsError, match=message):
            load_adapter(backbone, path, "local")


def test_without_settings_alpha_is_each_modules_rank(family, base, backbone, tmp_path) -> None:
    from safetensors import safe_open

    path = saved(family, base, tmp_path, 1, rank=2, alpha=6.0)
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (2, 6.0)
    wide = "transformer.transformer_blocks.0.attn.to_q"

    def widen(tensors) -> None:
        tensors[f"{wide}.lora_A.weight"] = tensors[f"{wide}.lora_A.weight"].repeat(2, 1)
        tensors[f"{wide}.lora_B.weight"] = tensors[f"{wide}.lora_B.weight"].repeat(1, 2) / 2

    report = load_adapter(backbone, rewritten(path, lambda _: None), "plain")
    assert (report.rank, report.alpha) == (2, 2.0)
    report = load_adapter(backbone, rewritten(path, widen), "wide")
    assert (report.rank, report.alpha) == (2, 2.0)
    one, other = merge_adapter(backbone, "plain"), merge_adapter(backbone, "wide")
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, **CLOSE)


def test_the_stock_pipeline_loads_a_saved_adapter(tmp_path) -> None:
    pipeline = stock_pipeline(with_t5=False)
    pipeline.save_pretrained(tmp_path / "stock")
    family = open_family("sd3", tmp_path / "stock")
    backbone = family.load_backbone(tmp_path / "stock" / "transformer").eval()
    shake(add_student_adapter(family, backbone, rank=3, alpha=6, seed=0))
    save_adapter(backbone, tmp_path / "adapter")
    noise = normal(family.latent_shape, [1, 2])
    condition, grid = family.condition(PROMPTS), family.grid(3)
    expected = sample(family.field(backbone), noise, condition, grid)
    call = {"latents": noise, "guidance_scale": 1.0, "num_inference_steps": 3}
    call |= {"height": 16, "width": 16, "output_type": "latent"}
    plain = pipeline(list(PROMPTS), **call).images
    assert not torch.allclose(plain, expected, atol=0.01)
    pipeline.load_lora_weights(tmp_path / "adapter")
    stock = pipeline(list(PROMPTS), **call).images
    torch.testing.assert_close(stock, expected, rtol=1e-5, atol=1e-5)
    merged = sample(family.field(merge_adapter(backbone)), noise, condition, grid)
    torch.testing.assert_close(merged, stock, **CLOSE)


def test_an_adapter_of_the_stock_library_is_loaded(tmp_path) -> None:
    from diffusers import StableDiffusion3Pipeline
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = stock_pipeline(with_t5=False)
    pipeline.save_pretrained(tmp_path / "stock")
    transformer = pipeline.transformer
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "ff.net.2"]))
    shake([p for n, p in transformer.named_parameters() if "lora_" in n])
    StableDiffusion3Pipeline.save_lora_weights(
        tmp_path / "adapter", transformer_lora_layers=get_peft_model_state_dict(transformer)
    )
    family = open_family("sd3", tmp_path / "stock")
    backbone = family.load_backbone(tmp_path / "stock" / "transformer").eval()
    report = load_adapter(backbone, tmp_path / "adapter", "teacher")
    assert {name.rsplit(".", 1)[-1] for name in report.modules} == {"to_q", "2"}
    inputs = normal(family.latent_shape, [1, 2]), SIGMA, family.condition(PROMPTS)
    with torch.no_grad():
        expected = family.field(transformer)(*inputs)
    torch.testing.assert_close(
        AdapterField(family, backbone, "teacher")(*inputs), expected, **CLOSE
    )

"""What every model family must keep; a new family is one more entry of ``tiny_models``."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_models import PROMPTS, TINY_FAMILIES, awake
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import Condition, GuidedField, normal, sample
from danceflow.models.family import FAMILIES, ModelFamily, open_family

SIGMA = torch.tensor([0.9, 0.02])
# Two batch sizes may take two paths through the processor's matrix kernels.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def takes_source(family: ModelFamily) -> bool:
    return "source" in family.condition(PROMPTS).tensors


def condition_of(family: ModelFamily) -> Condition:
    source = normal(family.latent_shape, [3, 4]) if takes_source(family) else None
    return family.condition(PROMPTS, source)


@pytest.fixture(scope="session")
def backbone(family: ModelFamily) -> nn.Module:
    return awake(family)


@pytest.fixture
def z(family: ModelFamily) -> Tensor:
    return normal(family.latent_shape, [1, 2])


def test_every_family_is_tested() -> None:
    assert TINY_FAMILIES.keys() == FAMILIES.keys()


def test_a_field_maps_float32_to_float32_of_one_shape(family, backbone, z) -> None:
    velocity = family.field(backbone)(z, SIGMA, condition_of(family))
    assert velocity.shape == z.shape
    assert velocity.dtype == torch.float32
    assert velocity.isfinite().all()


def test_a_field_is_float32_outside_whatever_the_network_computes_in(family, z) -> None:
    coarse = awake(family).to(torch.bfloat16)
    condition = condition_of(family)
    velocity = family.field(coarse)(z, SIGMA, condition)
    assert velocity.dtype == torch.float32
    exact = family.field(awake(family))(z, SIGMA, condition)
    assert (velocity - exact).norm() < 0.1 * exact.norm()


def test_a_batch_is_its_single_samples(family, backbone, z) -> None:
    field, condition = family.field(backbone), condition_of(family)
    whole = field(z, SIGMA, condition)
    singles = [
        field(z[i : i + 1], SIGMA[i : i + 1], condition.select(slice(i, i + 1))) for i in range(2)
    ]
    torch.testing.assert_close(whole, torch.cat(singles), **CLOSE)


def test_conditions_do_not_depend_on_their_batch(family) -> None:
    whole = family.condition(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        single = family.condition([prompt])
        for name, value in single.tensors.items():
            torch.testing.assert_close(whole.tensors[name][row], value[0], **CLOSE)


def test_the_prompt_the_noise_level_and_the_state_all_count(family, backbone, z) -> None:
    field, condition = family.field(backbone), condition_of(family)
    plain = field(z, SIGMA, condition)
    swapped = family.condition(PROMPTS[::-1], condition.tensors.get("source"))
    for other in (
        field(z, SIGMA, swapped),
        field(z, SIGMA * 0.5, condition),
        field(z.flip(0), SIGMA, condition),
    ):
        assert (other - plain).abs().max() > 1e-3


def test_null_empties_the_prompt_and_keeps_the_rest(family) -> None:
    condition = condition_of(family)
    null = family.null(condition)
    empty = family.condition(["", ""], condition.tensors.get("source"))
    assert null.tensors.keys() == condition.tensors.keys()
    for name, value in null.tensors.items():
        torch.testing.assert_close(value, empty.tensors[name], **CLOSE)
    if takes_source(family):
        assert torch.equal(null.tensors["source"], condition.tensors["source"])


def test_a_missing_source_is_one_of_zeros(family) -> None:
    if not takes_source(family):
        with pytest.raises(WeightsError, match="cannot edit"):
            family.condition(PROMPTS, torch.zeros(2, *family.latent_shape))
        return
    assert not family.condition(PROMPTS).tensors["source"].any()


def test_an_untrained_network_does_not_see_the_source(family, z) -> None:
    if not takes_source(family):
        pytest.skip("this model takes no source")
    condition = condition_of(family)
    blank = family.condition(PROMPTS)
    untrained = family.field(family.new_backbone(0).eval())
    with torch.no_grad():
        assert torch.equal(untrained(z, SIGMA, condition), untrained(z, SIGMA, blank))
    trained = family.field(awake(family))
    assert not torch.equal(trained(z, SIGMA, condition), trained(z, SIGMA, blank))


def test_an_untrained_network_is_a_function_of_its_seed(family) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, same, other = (family.new_backbone(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_target_velocity_is_noise_minus_data(family, z) -> None:
    clean = normal(family.latent_shape, [5, 6])
    sigma = torch.tensor([0.9, 0.05])
    wide = sigma[:, None, None, None]
    state = (1 - wide) * clean + wide * z
    target = family.target_velocity(state, clean, z, sigma)
    torch.testing.assert_close(target, z - clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 2, 16])
def test_the_grid_falls_from_one_to_zero(family, num_steps) -> None:
    grid = family.grid(num_steps)
    assert grid.shape == (num_steps + 1,)
    assert grid.dtype == torch.float32
    assert (float(grid[0]), float(grid[-1])) == (1.0, 0.0)
    assert (grid.diff() < 0).all()


def test_a_grid_needs_a_step(family) -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        family.grid(0)


def test_images_become_latents_and_images_again(family) -> None:
    channels, height, width = family.latent_shape
    image = family.decode(normal(family.latent_shape, [1, 2]))
    assert image.dtype == torch.float32
    assert image.shape[:2] == (2, 3)
    assert 0 <= image.min() <= image.max() <= 1
    latents = family.encode(image)
    assert latents.shape == (2, channels, height, width)
    assert latents.dtype == torch.float32


def test_sampling_with_guidance_is_finite_and_repeatable(family, backbone, z) -> None:
    field = GuidedField(family.field(backbone), family.null, 2.0)
    first, second = (sample(field, z, condition_of(family), family.grid(3)) for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, second)


def test_frozen_parts_survive_being_saved(family, tmp_path: Path) -> None:
    family.save_frozen(tmp_path)
    opened = open_family(family.name, tmp_path)
    assert opened.latent_shape == family.latent_shape
    assert opened.adapter_targets == family.adapter_targets
    assert torch.equal(opened.grid(7), family.grid(7))
    before, after = condition_of(family), condition_of(opened)
    assert before.tensors.keys() == after.tensors.keys()
    for name, value in before.tensors.items():
        # Text encoders are stored as float16.
        torch.testing.assert_close(after.tensors[name], value, rtol=1e-2, atol=1e-2)
    latents = normal(family.latent_shape, [1])
    torch.testing.assert_close(opened.decode(latents), family.decode(latents), **CLOSE)


def test_saving_frozen_parts_twice_gives_the_same_files(family, tmp_path: Path) -> None:
    family.save_frozen(tmp_path / "one")
    open_family(family.name, tmp_path / "one").save_frozen(tmp_path / "two")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert files == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*.*"))
    weights = [name for name in files if name.suffix == ".safetensors"]
    assert weights
    for name in weights:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_backbone_survives_being_saved(family, backbone, z, tmp_path: Path) -> None:
    family.save_backbone(backbone, tmp_path)
    loaded = family.load_backbone(tmp_path).eval()
    for name, value in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    with torch.no_grad():
        velocity = family.field(loaded)(z, SIGMA, condition_of(family))
    exact = family.field(backbone)(z, SIGMA, condition_of(family))
    assert (velocity - exact).norm() < 0.01 * exact.norm()


def test_a_network_that_diverged_is_not_saved(family, tmp_path: Path) -> None:
    broken = awake(family)
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(WeightsError, match="holds values that float16 cannot"):
        family.save_backbone(broken, tmp_path)


def test_missing_truncated_and_strange_weights_are_told(family, backbone, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="missing or truncated"):
        family.load_backbone(tmp_path / "nowhere")
    family.save_backbone(backbone, tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=rf"{path.name}: weights are missing or truncated"):
        family.load_backbone(tmp_path)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match="missing or truncated"):
        family.load_backbone(tmp_path)


def test_weights_of_another_shape_are_told(family, backbone, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    family.save_backbone(backbone, tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    state = load_file(path)
    name = sorted(state)[0]
    save_file({**state, name: state[name].repeat(2, *[1] * (state[name].ndim - 1))}, path)
    with pytest.raises(WeightsError, match=rf"1 tensors do not match .* is {name}: expected"):
        family.load_backbone(tmp_path)
    save_file({key: value for key, value in state.items() if key != name}, path)
    with pytest.raises(WeightsError, match=rf"is {name}: expected .* found None"):
        family.load_backbone(tmp_path)


def test_unknown_words_are_named(family) -> None:
    assert family.unknown_words("a red circle") == []


def test_moving_to_the_device_it_is_on_changes_nothing(family) -> None:
    assert family.to("cpu") is family
    assert family.condition(PROMPTS).num_samples == len(PROMPTS)


def test_adapter_targets_name_modules_of_the_backbone(family, backbone) -> None:
    names = [f".{name}" for name, module in backbone.named_modules() if list(module.parameters())]
    for target in family.adapter_targets:
        assert any(name.endswith(f".{target}") for name in names), target


def test_conditions_are_plain_data(family) -> None:
    condition = family.condition(PROMPTS)
    assert dataclasses.is_dataclass(condition)
    for value in condition.tensors.values():
        assert value.dtype == torch.float32
        assert not value.requires_grad

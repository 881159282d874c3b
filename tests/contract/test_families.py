"""What every model family must keep; a new family is one more entry of ``tiny_models``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_models import PROMPTS, TINY_FAMILIES, awake
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import Condition, normal, pad_length, sample
from danceflow.models.family import FAMILIES, ModelFamily, open_family
from danceflow.models.frozen.reading import one_to_all, told

SIGMA = torch.tensor([0.9, 0.02])
# Two batch sizes may take two paths through the processor's matrix kernels.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def images_of(family: ModelFamily) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, *family.image_size, generator=generator)


def condition_of(family: ModelFamily, prompts: Sequence[str] = PROMPTS) -> Condition:
    if not family.takes_source:
        return family.condition(prompts)
    return family.condition(prompts, family.encode(images_of(family)), images_of(family))


def assert_same(one: Condition, other: Condition, **tolerance: float) -> None:
    """Equal but for zeros behind the prompts."""
    assert one.tensors.keys() == other.tensors.keys()
    for name, value in one.tensors.items():
        lengths = [t.shape[1] if t.ndim > 1 else 0 for t in (value, other.tensors[name])]
        pair = [
            t if t.ndim < 2 else pad_length(t, max(lengths)) for t in (value, other.tensors[name])
        ]
        torch.testing.assert_close(*pair, **(tolerance or CLOSE))


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
    sigma = torch.tensor([0.875, 0.03125])  # some networks round the time to bfloat16 too
    velocity = family.field(coarse)(z, sigma, condition)
    assert velocity.dtype == torch.float32
    exact = family.field(awake(family))(z, sigma, condition)
    assert (velocity - exact).norm() < 0.1 * exact.norm()


def test_a_batch_is_its_single_samples(family, backbone, z) -> None:
    field, condition = family.field(backbone), condition_of(family)
    whole = field(z, SIGMA, condition)
    singles = [
        field(z[i : i + 1], SIGMA[i : i + 1], condition.select(slice(i, i + 1))) for i in range(2)
    ]
    torch.testing.assert_close(whole, torch.cat(singles), **CLOSE)


def test_conditions_do_not_depend_on_their_batch(family) -> None:
    whole, images = condition_of(family), images_of(family)
    for row, prompt in enumerate(PROMPTS):
        at = slice(row, row + 1)
        source = (family.encode(images[at]), images[at]) if family.takes_source else ()
        assert_same(whole.select(at), family.condition([prompt], *source))


def test_prompts_of_all_lengths_join(family) -> None:
    prompts = ("", "a", "a red circle " * 3)
    joined = Condition.cat([family.condition([prompt]) for prompt in prompts])
    assert_same(joined, family.condition(prompts))


def test_the_prompt_the_noise_level_and_the_state_all_count(family, backbone, z) -> None:
    field, condition = family.field(backbone), condition_of(family)
    plain = field(z, SIGMA, condition)
    swapped = condition_of(family, PROMPTS[::-1])
    for other in (
        field(z, SIGMA, swapped),
        field(z, SIGMA * 0.5, condition),
        field(z.flip(0), SIGMA, condition),
    ):
        assert (other - plain).abs().max() > 1e-3


def test_null_empties_the_prompt_and_keeps_the_rest(family) -> None:
    condition = condition_of(family)
    null = family.null(condition)
    assert_same(null, condition_of(family, ("", "")))
    for name, value in condition.tensors.items():
        assert null.tensors[name].shape == value.shape
    if family.takes_source:
        assert torch.equal(null.tensors["source"], condition.tensors["source"])


def test_a_missing_source_is_one_of_zeros(family) -> None:
    if not family.takes_source:
        assert "source" not in family.condition(PROMPTS).tensors
        with pytest.raises(WeightsError, match="cannot edit"):
            family.condition(PROMPTS, torch.ones(2, *family.latent_shape))
        return
    assert not family.condition(PROMPTS).tensors["source"].any()


def test_prompt_encoders_that_look_at_the_source_need_it_as_pixels(family) -> None:
    if not family.sees_source:
        pytest.skip("this model's prompt encoders read text alone")
    with pytest.raises(WeightsError, match="as pixels"):
        family.condition(PROMPTS, family.encode(images_of(family)))


def test_rows_with_and_without_a_source_share_a_batch(family, backbone, z) -> None:
    if not family.takes_source:
        pytest.skip("this model takes no source")
    field, edit, plain = family.field(backbone), condition_of(family), family.condition(PROMPTS)
    mixed = Condition.cat([edit.select(slice(0, 1)), plain.select(slice(1, 2))])
    expected = [field(z, SIGMA, edit)[:1], field(z, SIGMA, plain)[1:]]
    torch.testing.assert_close(field(z, SIGMA, mixed), torch.cat(expected), **CLOSE)
    images, source = images_of(family), family.encode(images_of(family))
    images[1], source[1] = 0, 0
    assert_same(family.condition(PROMPTS, source, images), mixed)


def test_another_image_size_has_its_own_latents_and_grid(family, backbone) -> None:
    height, width = family.image_size
    wide = family.sized(height // 2, width)
    assert (family.image_size, wide.image_size) == ((height, width), (height // 2, width))
    channels, rows, columns = family.latent_shape
    assert wide.latent_shape == (channels, rows // 2, columns)
    assert wide.encode(images_of(wide)).shape[1:] == wide.latent_shape
    noise = normal(wide.latent_shape, [1, 2])
    result = sample(wide.field(backbone), noise, condition_of(wide), wide.grid(2))
    assert wide.decode(result).shape == (2, 3, height // 2, width)
    with pytest.raises(WeightsError, match="multiples"):
        family.sized(height - 1, width)


def test_an_untrained_network_does_not_see_the_source(family, z) -> None:
    if not family.takes_source or family.name != "sd3":
        pytest.skip("the source has no weights of its own")
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


def test_another_shift_is_another_grid_of_the_same_parts(family) -> None:
    try:
        lower, higher = (family.shifted(shift) for shift in (1.0, 4.0))
    except WeightsError as error:
        assert "shifts its sigmas by the picture's size" in str(error)  # noqa: PT017
        return
    assert (lower.grid(4)[1:-1] < higher.grid(4)[1:-1]).all()
    assert torch.equal(lower.shifted(4.0).grid(4), higher.grid(4))
    assert all(
        a is b
        for a, b in zip(*(f.frozen_networks().values() for f in (lower, family)), strict=True)
    )


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
    field = family.guided(family.field(backbone), 2.0)
    first, second = (sample(field, z, condition_of(family), family.grid(3)) for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, second)


def test_frozen_parts_survive_being_saved(family, tmp_path: Path) -> None:
    family.save_frozen(tmp_path)
    opened = open_family(family.name, tmp_path)
    assert opened.latent_shape == family.latent_shape
    assert opened.image_size == family.image_size
    assert opened.adapter_targets == family.adapter_targets
    assert torch.equal(opened.grid(7), family.grid(7))
    # Text encoders are stored as float16.
    assert_same(condition_of(opened), condition_of(family), rtol=1e-2, atol=1e-2)
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


LONG = "a red circle " * 300
"""Longer than any window."""


def layouts(family: ModelFamily) -> list[bool]:
    return [False, True] if family.takes_source else [False]


def without_blanks(text: str) -> str:
    return "".join(text.split())


def test_a_prompt_that_is_read_to_its_end_reports_nothing(family) -> None:
    prompts = ("a red circle", "a red")
    for edits in layouts(family):
        for prompt in prompts:
            readings = family.readings(prompt, edits=edits)
            assert readings
            assert told(readings) == ""
            for item in readings:
                assert (item.kept, item.dropped) == (prompt, "")
                assert item.num_read == item.num_tokens > 0
        assert one_to_all([family.readings(prompt, edits=edits) for prompt in prompts]) == []


def test_what_lies_behind_the_window_is_reported(family) -> None:
    for edits in layouts(family):
        readings = family.readings(LONG, edits=edits)
        # Beside a picture it has no window, and the later one never.
        if (edits and family.name == "qwen_image") or family.name == "qwen_image21":
            assert told(readings) == ""
            continue
        for item in readings:
            assert without_blanks(item.kept + item.dropped) == without_blanks(LONG)
            assert 0 < item.num_read < item.num_tokens
            assert f"{item.num_read} of its {item.num_tokens} tokens" in told(readings)
            assert item.encoder in told(readings)
            assert repr(item.dropped[:100])[:-1] in told(readings)


def test_prompts_that_differ_behind_the_window_are_one_condition_and_told(family) -> None:
    other = LONG + "remove the blue square"
    one, same = family.readings(LONG), family.readings(other)
    if family.name == "qwen_image21":  # which reads all of both
        assert one_to_all([one, same]) == []
        return
    assert one_to_all([one, family.readings("a red circle"), same]) == [[0, 2]]
    assert "remove the blue square" in same[0].dropped
    assert_same(family.condition([LONG]), family.condition([other]), rtol=0, atol=1e-5)
    # What is kept is what counts: one token less of it is another condition.
    shorter = min(one, key=lambda item: len(item.kept)).kept.rsplit(maxsplit=1)[0]
    assert one_to_all([one, family.readings(shorter)]) == []


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
        assert value.dtype == torch.float32 or not value.is_floating_point()
        assert not value.requires_grad

"""What the SD3 family's numbers mean."""

import pytest
import torch
from tiny_models import PROMPTS, SMALL_CONFIG, awake, small_sd3
from torch import nn

from danceflow.errors import WeightsError
from danceflow.fields import Condition, normal, shifted_grid
from danceflow.models.families.sd3 import Sd3Family, Sd3Field, cosine_positions


class Recorder(nn.Module):
    """Stands for a transformer: returns a constant and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, **given):
        self.given = given
        return (torch.full_like(given["hidden_states"][:, :3], 0.5),)


@pytest.fixture
def recorded():
    network = Recorder()
    family = small_sd3()
    z = normal(family.latent_shape, [1, 2])
    source = normal(family.latent_shape, [3, 4])
    condition = family.condition(PROMPTS, source)
    return network, z, source, condition


def test_the_network_gets_the_time_in_thousandths_and_its_own_dtype(recorded) -> None:
    network, z, source, condition = recorded
    Sd3Field(network, "velocity", 0.05, source_mask=False)(z, torch.tensor([1.0, 0.25]), condition)
    assert network.given["timestep"].tolist() == [1000.0, 250.0]
    states = network.given["hidden_states"]
    assert states.dtype == torch.bfloat16
    assert torch.equal(states, torch.cat([z, source], dim=1).bfloat16())
    assert network.given["encoder_hidden_states"].dtype == torch.bfloat16
    assert network.given["pooled_projections"].dtype == torch.bfloat16


def test_without_a_source_the_network_gets_the_state_alone(recorded) -> None:
    network, z, _, condition = recorded
    text = {name: value for name, value in condition.tensors.items() if name != "source"}
    Sd3Field(network, "velocity", 0.05, source_mask=False)(z, torch.ones(2), Condition(text))
    assert torch.equal(network.given["hidden_states"], z.bfloat16())


def test_a_source_mask_tells_a_source_from_none_row_by_row(recorded) -> None:
    network, z, source, condition = recorded
    some = condition.tensors | {"source": torch.stack([source[0], torch.zeros_like(source[1])])}
    Sd3Field(network, "velocity", 0.05, source_mask=True)(z, torch.ones(2), Condition(some))
    states = network.given["hidden_states"]
    assert states.shape == (2, 7, *z.shape[2:])
    assert torch.equal(states[:, :6], torch.cat([z, some["source"]], dim=1).bfloat16())
    assert states[0, 6].eq(1).all()
    assert states[1, 6].eq(0).all()


def test_weights_without_source_or_mask_get_zeros_for_them(tmp_path) -> None:
    plain, whole = small_sd3(source=False), small_sd3()
    backbone = awake(plain)
    plain.save_backbone(backbone, tmp_path)
    wide = whole.load_backbone(tmp_path).pos_embed.proj.weight
    assert torch.equal(wide[:, :3], backbone.pos_embed.proj.weight.half().float())
    assert wide.shape[1] == 7
    assert not wide[:, 3:].any()


def test_weights_of_another_number_of_channels_are_refused(tmp_path) -> None:
    plain = small_sd3(source=False)
    backbone = awake(plain)
    proj = backbone.pos_embed.proj
    proj.weight = nn.Parameter(torch.cat([proj.weight, proj.weight[:, :1]], dim=1))
    plain.save_backbone(backbone, tmp_path)
    with pytest.raises(WeightsError, match=r"pos_embed\.proj\.weight"):
        small_sd3().load_backbone(tmp_path)


def test_weights_with_a_source_and_no_mask_get_zeros_for_it(tmp_path) -> None:
    family = small_sd3()
    backbone = awake(family)
    proj = backbone.pos_embed.proj
    proj.weight = nn.Parameter(proj.weight[:, :6])
    family.save_backbone(backbone, tmp_path)
    wide = family.load_backbone(tmp_path).pos_embed.proj.weight
    assert torch.equal(wide[:, :6], proj.weight.half().float())
    assert not wide[:, 6:].any()


def test_a_clean_prediction_is_divided_by_at_least_sigma_min(recorded) -> None:
    network, z, _, condition = recorded
    for sigma, divisor in ((1.0, 1.0), (0.2, 0.2), (0.05, 0.05), (0.01, 0.05), (0.0, 0.05)):
        velocity = Sd3Field(network, "clean", 0.05, source_mask=False)(
            z, torch.full((2,), sigma), condition
        )
        torch.testing.assert_close(velocity, (z - 0.5) / divisor)
    velocity = Sd3Field(network, "velocity", 0.05, source_mask=False)(
        z, torch.full((2,), 0.2), condition
    )
    assert torch.equal(velocity, torch.full_like(z, 0.5))


def test_the_two_predictions_are_one_network_read_in_two_ways() -> None:
    clean, velocity = small_sd3("clean"), small_sd3("velocity")
    backbone = awake(clean)
    z, sigma = normal(clean.latent_shape, [1, 2]), torch.tensor([0.8, 0.01])
    condition = clean.condition(PROMPTS)
    output = velocity.field(backbone)(z, sigma, condition)
    expected = (z - output) / sigma.clamp_min(0.05)[:, None, None, None]
    torch.testing.assert_close(clean.field(backbone)(z, sigma, condition), expected)


def test_the_right_clean_image_has_the_target_velocity_at_every_noise_level() -> None:
    family = small_sd3("clean")
    clean, noise = normal(family.latent_shape, [1, 2]), normal(family.latent_shape, [3, 4])
    sigma = torch.tensor([0.4, 0.001])
    wide = sigma[:, None, None, None]
    z = (1 - wide) * clean + wide * noise
    target = family.target_velocity(z, clean, noise, sigma)
    assert torch.equal(target, (z - clean) / sigma.clamp_min(0.05)[:, None, None, None])
    torch.testing.assert_close(target[0], (noise - clean)[0])
    torch.testing.assert_close(target[1], (noise - clean)[1] * 0.001 / 0.05, rtol=1e-3, atol=1e-5)


def test_the_small_family_uses_the_shifted_grid() -> None:
    assert torch.equal(small_sd3().grid(8), shifted_grid(8, 2.0))


def test_adapter_targets_reach_the_source_only_if_there_is_one() -> None:
    with_source, without = small_sd3(), small_sd3(source=False)
    assert set(with_source.adapter_targets) - set(without.adapter_targets) == {"pos_embed.proj"}


def test_an_unknown_prediction_is_told() -> None:
    with pytest.raises(WeightsError, match="unknown prediction 'clear': did you mean 'clean'"):
        Sd3Family.new({**SMALL_CONFIG, "prediction": "clear"}, ("a",), 0)


def test_a_number_of_channels_that_makes_no_sense_is_told() -> None:
    transformer = {**SMALL_CONFIG["transformer"], "in_channels": 8}
    with pytest.raises(WeightsError, match="or 7 with a source image and its mask, not 8"):
        Sd3Family.new({**SMALL_CONFIG, "transformer": transformer}, ("a",), 0)


@pytest.mark.parametrize(("size", "width"), [(4, 16), (4, 144), (8, 48)])
def test_places_of_the_grid_are_equally_far_apart(size: int, width: int) -> None:
    table = cosine_positions(size, width)[0].view(size, size, width)
    torch.testing.assert_close(table.square().mean((0, 1)), torch.ones(width), rtol=1e-5, atol=1e-5)
    column = torch.cdist(table[0], table[0])
    row = torch.cdist(table[:, 0], table[:, 0])
    torch.testing.assert_close(column, row)
    apart = column[~torch.eye(size, dtype=torch.bool)]
    if (width // 2) % size == 0:
        torch.testing.assert_close(apart, apart.mean().expand_as(apart))
    assert float(apart.min()) > 0.9 * float(apart.max())


def test_the_place_table_of_a_new_network_is_kept_by_the_stock_class(tmp_path) -> None:
    from diffusers import SD3Transformer2DModel

    family = small_sd3()
    backbone = family.new_backbone(3)
    family.save_backbone(backbone, tmp_path)
    stock = SD3Transformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.float32)
    size, width = backbone.pos_embed.pos_embed_max_size, backbone.inner_dim
    expected = cosine_positions(size, width).half().float()
    assert torch.equal(stock.pos_embed.pos_embed, expected)

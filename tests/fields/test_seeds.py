import math

import pytest
import torch

from danceflow.fields import derive_seeds, normal, seed_for, uniform
from danceflow.fields.seeds import _mix, _signed

PINNED_NORMAL = [0.986537, 1.1607133, 0.24774]
PINNED_UNIFORM = [0.5961188718302076]
SEEDS = [seed_for(7, "test", 0, index) for index in range(64)]


def test_seed_for_is_the_same_in_every_process():
    assert seed_for(0, "noise", 3, 5) == 8532128388762851940


def test_seed_for_fits_an_int64_tensor_and_separates_its_arguments():
    seeds = {
        seed_for(seed, purpose, step, index)
        for seed in range(5)
        for purpose in ("a", "b")
        for step in range(5)
        for index in range(20)
    }
    assert len(seeds) == 5 * 2 * 5 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.tensor(sorted(seeds)).dtype == torch.int64


def test_seed_for_does_not_run_its_arguments_together():
    assert seed_for(1, "a", 23, 4) != seed_for(1, "a", 2, 34)


def test_normal_has_the_moments_of_a_standard_normal():
    numbers = normal((3, 32, 32), SEEDS).double()
    assert numbers.shape == (64, 3, 32, 32)
    tolerance = 4.0 / math.sqrt(numbers.numel())
    assert abs(numbers.mean()) < tolerance
    assert abs(numbers.square().mean() - 1.0) < math.sqrt(2.0) * tolerance
    assert abs(numbers.pow(3).mean()) < math.sqrt(15.0) * tolerance
    assert abs(numbers.pow(4).mean() - 3.0) < math.sqrt(96.0) * tolerance


def test_normal_values_follow_the_cdf():
    numbers = normal((4096,), SEEDS[:16]).double().flatten()
    for point in (-2.0, -0.5, 0.0, 1.0, 2.5):
        expected = 0.5 * (1.0 + math.erf(point / math.sqrt(2.0)))
        deviation = math.sqrt(expected * (1.0 - expected) / len(numbers))
        assert abs((numbers < point).double().mean() - expected) < 4.0 * deviation


def test_rows_of_different_seeds_and_elements_of_one_row_are_uncorrelated():
    rows = normal((3072,), SEEDS).double()
    correlation = torch.corrcoef(rows) - torch.eye(64)
    assert correlation.abs().max() < 5.0 / math.sqrt(3072)
    flat = rows.flatten()
    for lag in (1, 2, 1536, 3072):
        assert abs((flat[:-lag] * flat[lag:]).mean()) < 4.0 / math.sqrt(len(flat) - lag)


def test_consecutive_plain_seeds_are_uncorrelated_too():
    rows = normal((3072,), list(range(32))).double()
    assert (torch.corrcoef(rows) - torch.eye(32)).abs().max() < 5.0 / math.sqrt(3072)


def test_the_high_bits_of_a_seed_matter():
    """torch's own CPU generator fails this: it keeps 32 bits of the seed."""
    assert not torch.equal(normal((8,), [5]), normal((8,), [5 + 2**40]))


@pytest.mark.parametrize("shape", [(3, 32, 32), (5,), (7, 3), (1, 1, 1)])
@pytest.mark.parametrize("draw", [normal, lambda shape, seeds: uniform(seeds, shape)])
def test_a_row_is_the_same_bit_for_bit_in_any_batch(shape, draw):
    everything = draw(shape, SEEDS)
    for batch_size in (1, 3, 7, 32):
        parts = [
            draw(shape, SEEDS[first : first + batch_size])
            for first in range(0, len(SEEDS), batch_size)
        ]
        assert torch.equal(torch.cat(parts), everything)


def test_seeds_may_be_a_tensor():
    assert torch.equal(normal((4,), torch.tensor(SEEDS)), normal((4,), SEEDS))
    assert derive_seeds(torch.tensor(SEEDS), "x", 2) == derive_seeds(SEEDS, "x", 2)


def test_uniform_fills_the_open_interval_evenly():
    numbers = uniform(SEEDS, (1000,))
    assert numbers.dtype == torch.float64
    assert numbers.min() > 0.0
    assert numbers.max() < 1.0
    assert abs(numbers.mean() - 0.5) < 4.0 / math.sqrt(12 * numbers.numel())
    assert abs(numbers.var() - 1.0 / 12.0) < 0.002


def test_purposes_and_steps_give_independent_streams():
    first = normal((3072,), derive_seeds(SEEDS, "noise")).flatten()
    for other in (derive_seeds(SEEDS, "sde"), derive_seeds(SEEDS, "noise", 1)):
        correlation = torch.corrcoef(torch.stack([first, normal((3072,), other).flatten()]))[0, 1]
        assert abs(correlation) < 4.0 / math.sqrt(len(first))


def test_the_generator_is_splitmix64():
    """The published first words of the reference implementation's stream from state 1234567."""
    states = torch.tensor([1234567]) + torch.arange(1, 6) * _signed(0x9E3779B97F4A7C15)
    words = [word % 2**64 for word in _mix(states).tolist()]
    assert words == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_seeds_one_counter_step_apart_do_not_share_a_shifted_stream():
    first, other = uniform([5, 5 + 0x9E3779B97F4A7C15], (64,))
    assert not torch.isin(first, other).any()


def test_the_numbers_of_a_seed_never_change():
    assert normal((3,), [42]).flatten().tolist() == pytest.approx(PINNED_NORMAL, abs=1e-6)
    assert uniform([42]).tolist() == pytest.approx(PINNED_UNIFORM, abs=1e-12)

import math

import pytest
import torch

from danceflow.fields import QUERIES, draw_queries
from danceflow.fields.query import beta_index_probabilities

NUM = 4000
SEEDS = list(range(NUM))


def draw(name, num_steps=16, num_queries=1, progress=0.0, seeds=SEEDS):
    return draw_queries(name, len(seeds), num_steps, num_queries, seeds, progress=progress)


def low_noise_cdf(x):
    """The CDF of Beta(5, 2)."""
    return 6.0 * x**5 - 5.0 * x**6


@pytest.mark.parametrize(("num_steps", "mean"), [(8, 5.21), (10, 6.64), (16, 10.93), (28, 19.50)])
def test_mean_index_of_the_low_query(num_steps, mean):
    probabilities = beta_index_probabilities(5.0, 2.0, num_steps)
    index = torch.arange(num_steps, dtype=torch.float64)
    assert abs((probabilities * index).sum().item() - mean) < 0.005
    spread = ((probabilities * index**2).sum() - mean**2).sqrt()
    drawn = draw("low", num_steps).double()
    assert abs(drawn.mean().item() - mean) < 4.0 * spread / math.sqrt(NUM)


@pytest.mark.parametrize("num_steps", [1, 8, 16, 28])
def test_index_probabilities_are_the_differences_of_the_cdf(num_steps):
    edges = [low_noise_cdf(k / num_steps) for k in range(num_steps + 1)]
    exact = torch.tensor(edges, dtype=torch.float64).diff()
    assert torch.allclose(beta_index_probabilities(5.0, 2.0, num_steps), exact, atol=1e-6)


@pytest.mark.parametrize("name", ["low", "median", "high", "uniform"])
def test_drawn_frequencies_follow_the_probabilities(name):
    shape = {"low": (5, 2), "median": (5, 5), "high": (2, 5), "uniform": (1, 1)}[name]
    expected = NUM * beta_index_probabilities(*map(float, shape), 16)
    observed = draw(name).flatten().bincount(minlength=16).double()
    frequent = expected > 5
    chi_square = ((observed - expected).square() / expected)[frequent].sum()
    degrees = int(frequent.sum()) - 1
    assert chi_square < degrees + 4.0 * math.sqrt(2.0 * degrees)


def test_low_noise_is_the_late_side_of_the_rollout():
    assert draw("low").double().mean() > 10.0
    assert 7.0 < draw("median").double().mean() < 8.0
    assert draw("high").double().mean() < 5.0


def test_stopping_at_the_low_query_saves_31_7_percent_of_16_steps():
    index = torch.arange(16, dtype=torch.float64)
    mean = (beta_index_probabilities(5.0, 2.0, 16) * index).sum().item()
    assert round(100.0 * (1.0 - mean / 16.0), 1) == 31.7


@pytest.mark.parametrize("name", sorted(QUERIES))
@pytest.mark.parametrize("num_queries", [1, 2, 4, 8, 16])
def test_indices_are_ascending_distinct_and_on_the_rollout(name, num_queries):
    index = draw(name, 16, num_queries, 0.5, SEEDS[:200])
    assert index.shape == (200, num_queries)
    assert index.dtype == torch.int64
    assert index.min() >= 0
    assert index.max() <= 15
    assert (index.diff(dim=1) > 0).all()


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_as_many_queries_as_steps_are_all_states(name):
    assert torch.equal(draw(name, 5, 5, 0.3, SEEDS[:3]), torch.arange(5).expand(3, 5))


def test_stratified_puts_one_index_in_every_run():
    index = draw("stratified", 10, 4)
    lows, highs = torch.tensor([0, 2, 5, 7]), torch.tensor([1, 4, 6, 9])
    assert torch.equal(index.amin(dim=0), lows)
    assert torch.equal(index.amax(dim=0), highs)


def test_curriculum_goes_from_the_high_query_to_the_low_one():
    assert torch.equal(draw("curriculum", progress=0.0), draw("high"))
    assert torch.equal(draw("curriculum", progress=1.0), draw("low"))
    middle = draw("curriculum", progress=0.5).double().mean()
    assert draw("high").double().mean() < middle < draw("low").double().mean()


def test_a_row_depends_on_its_own_seed_only():
    everything = draw("low", 16, 3)
    assert torch.equal(draw("low", 16, 3, seeds=SEEDS[40:41]), everything[40:41])
    assert torch.equal(draw("low", 16, 3, seeds=SEEDS[::-1]), everything.flip(0))


def coupled(coupling, name="low", seeds=SEEDS, runs=None, progress=0.0):
    return draw_queries(
        name, len(seeds), 16, 1, seeds, coupling=coupling, runs=runs, progress=progress
    )[:, 0]


@pytest.mark.parametrize("coupling", ["antithetic", "stratified"])
@pytest.mark.parametrize("name", sorted(QUERIES))
def test_a_coupled_sample_keeps_its_querys_distribution(coupling, name):
    """Over many batches of six every place of the batch follows the probabilities."""
    shape = {"low": (5, 2), "median": (5, 5), "high": (2, 5), "curriculum": (3.5, 3.5)}
    expected = beta_index_probabilities(*map(float, shape.get(name, (1, 1))), 16)
    num_batches = 600
    drawn = coupled(coupling, name, range(6 * num_batches), [6] * num_batches, progress=0.5)
    for place in range(6):
        observed = drawn[place::6].bincount(minlength=16).double()
        frequent = num_batches * expected > 5
        wanted = num_batches * expected[frequent]
        chi_square = ((observed[frequent] - wanted).square() / wanted).sum()
        degrees = int(frequent.sum()) - 1
        assert chi_square < degrees + 4.5 * math.sqrt(2.0 * degrees)


@pytest.mark.parametrize(("coupling", "factor"), [("antithetic", 5.0), ("stratified", 50.0)])
def test_coupling_lowers_the_variance_of_a_batchs_mean(coupling, factor):
    num_batches, size = 300, 24
    runs, seeds = [size] * num_batches, range(size * num_batches)
    means = {
        name: coupled(name, seeds=seeds, runs=runs).double().reshape(-1, size).mean(dim=1)
        for name in ("independent", coupling)
    }
    assert means["independent"].var() > factor * means[coupling].var()
    assert abs(means[coupling].mean() - 10.93) < 0.05


def test_antithetic_neighbours_mirror_each_other():
    index = coupled("antithetic", "uniform")
    assert torch.equal(index[::2] + index[1::2], torch.full((NUM // 2,), 15))


def test_a_stratified_run_holds_every_index_as_often_as_it_should():
    index = coupled("stratified", "low", SEEDS[:100])
    expected = 100 * beta_index_probabilities(5.0, 2.0, 16)
    assert ((index.bincount(minlength=16) - expected).abs() < 2.0).all()


@pytest.mark.parametrize("coupling", ["antithetic", "stratified"])
def test_a_run_depends_on_its_own_seeds_only(coupling):
    whole = coupled(coupling, seeds=SEEDS[:11], runs=[5, 6])
    assert torch.equal(whole[5:], coupled(coupling, seeds=SEEDS[5:11]))
    assert torch.equal(
        coupled("independent", seeds=SEEDS[:11]), draw("low", seeds=SEEDS[:11])[:, 0]
    )


def test_coupled_samples_have_one_query_each():
    with pytest.raises(ValueError, match="num_queries is 2"):
        draw_queries("low", 4, 16, 2, SEEDS[:4], coupling="antithetic")
    with pytest.raises(ValueError, match="unknown coupling 'antithetc': did you mean 'antithetic'"):
        coupled("antithetc")
    with pytest.raises(ValueError, match=r"runs \[3\] do not sum to 4 samples"):
        coupled("stratified", seeds=SEEDS[:4], runs=[3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lwo", 2, 16, 1, [1, 2]), "unknown query 'lwo': did you mean 'low'"),
        (("low", 2, 16, 17, [1, 2]), "num_queries is 17, but a rollout of 16 steps"),
        (("low", 2, 16, 0, [1, 2]), "num_queries is 0"),
        (("low", 2, 16, 1, [1]), "2 samples need as many seeds"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_queries(*arguments)


def test_progress_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="progress"):
        draw("curriculum", progress=1.5)

"""Checks find what differs, pass what does not, and say when there is too little to tell."""

from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from danceflow.params.sections import WatchParams
from danceflow.watch.checks import (
    Check,
    check_embeddings,
    check_lengths,
    check_scores,
    check_words,
    drawn,
    unknown_words,
    words_of,
)

POLICY = WatchParams(
    min_requests=50,
    alpha=0.01,
    max_unknown_words=0.05,
    max_length_shift=0.2,
    max_embedding_shift=0.75,
    max_score_loss=0.1,
    on_drift="report",
)
TRAINED = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("ring", "cross")] * 50


def prompts(count: int, seed: int, extra: str = "", share: float = 0.0) -> list[str]:
    rng = Random(seed)
    return [rng.choice(TRAINED) + (extra if rng.random() < share else "") for _ in range(count)]


def test_words_are_without_case_and_punctuation() -> None:
    assert words_of("A Red, ring's  edge-on… ÄHRE!") == ["a", "red", "ring's", "edge-on", "ähre"]
    assert unknown_words(["a zebra zebra", "A RED zebra"], TRAINED) == {"zebra": 2}


@pytest.mark.parametrize(
    ("share", "decision"), [(0.0, "within"), (0.04, "within"), (0.3, "crossed")]
)
def test_unknown_words(share: float, decision: str) -> None:
    found = check_words("generate", prompts(400, 1, " zebra", share), TRAINED, POLICY)
    assert found.decision == decision
    assert ("zebra" in found.text) == (share > 0)


@pytest.mark.parametrize(("extra", "decision"), [("", "within"), (" red red", "crossed")])
def test_lengths(extra: str, decision: str) -> None:
    found = check_lengths("edit", prompts(200, 2, extra, 0.5), TRAINED, POLICY)
    assert (found.decision, found.kind) == (decision, "edit")


@pytest.mark.parametrize(("shift", "decision"), [(0.0, "within"), (2.0, "crossed")])
def test_embeddings(shift: float, decision: str) -> None:
    generator = np.random.default_rng(3)
    served = generator.normal(size=(150, 8))
    served[:, 0] += shift
    served[7, 0] += 50.0 * (shift > 0)
    found, order = check_embeddings("generate", served, generator.normal(size=(300, 8)), POLICY)
    assert found.decision == decision
    assert sorted(order) == list(range(150))
    if shift:
        assert order[0] == 7  # the most foreign one
        assert found.value > 0.85
    else:
        assert abs(found.value - 0.5) < 0.1


@pytest.mark.parametrize(
    ("mean", "decision"), [(0.8, "within"), (0.75, "within"), (0.4, "crossed")]
)
def test_scores(mean: float, decision: str) -> None:
    rng = Random(4)
    scores = [float(rng.random() < mean) for _ in range(300)]
    found = check_scores("generate", scores, [0.8] * 300, POLICY)
    assert found.decision == decision
    assert found.value == pytest.approx(1 - np.mean(scores) / 0.8)


LITTLE: dict[str, Callable[[], Check]] = {
    "words": lambda: check_words("edit", prompts(49, 1), TRAINED, POLICY),
    "lengths": lambda: check_lengths("edit", prompts(49, 1), TRAINED, POLICY),
    "embeddings": lambda: check_embeddings("edit", np.ones((49, 2)), np.ones((99, 2)), POLICY)[0],
    "no training": lambda: check_embeddings("edit", np.ones((50, 2)), np.ones((1, 2)), POLICY)[0],
    "scores": lambda: check_scores("edit", [1.0] * 49, [1.0] * 49, POLICY),
    "no scores": lambda: check_scores("edit", [], [], POLICY),
    "no best": lambda: check_scores("edit", [0.0] * 99, [0.0] * 99, POLICY),
}


@pytest.mark.parametrize("name", LITTLE)
def test_too_little_is_not_known(name: str) -> None:
    found = LITTLE[name]()
    assert (found.decision, found.value) == ("unknown", None)
    assert found.text


def test_chance_alone_crosses_no_limit() -> None:
    """Requests drawn from the training's own prompts, many times over."""
    tight = POLICY.model_copy(
        update={"max_unknown_words": 0.0, "max_length_shift": 0.0, "min_requests": 20}
    )
    trained = TRAINED + [f"{prompt} and a ring" for prompt in TRAINED]
    crossed = 0
    for seed in range(200):
        served = [Random(seed * 1000 + place).choice(trained) for place in range(60)]
        crossed += check_lengths("edit", served, trained, tight).decision == "crossed"
        assert check_words("edit", served, trained, tight).decision == "within"
    assert crossed <= 8  # alpha is 0.01


def test_many_rows_are_thinned_out_the_same_way_each_time() -> None:
    assert drawn(3) == [0, 1, 2]
    assert drawn(10_000) == drawn(10_000)
    assert len(set(drawn(10_000))) == 500

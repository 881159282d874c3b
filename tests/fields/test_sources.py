"""Sources in a condition: what is given stays, what is missing is zeros, and that is told apart."""

import pytest
import torch

from danceflow.fields import SOURCE, Condition, no_sources, rows_with_source, with_source

PROMPTS = {"embeds": torch.ones(2, 3, 4, dtype=torch.bfloat16)}
SHAPE = (3, 8, 8)


def test_no_source_is_told_from_a_source() -> None:
    sources = no_sources(3, SHAPE)
    assert sources.dtype == torch.float32
    sources[1, 2, 5, 5] = -1e-6
    assert rows_with_source(sources).tolist() == [False, True, False]


def test_a_model_that_takes_sources_always_has_them() -> None:
    found = with_source(PROMPTS, None, SHAPE, takes_source=True).tensors
    assert torch.equal(found[SOURCE], no_sources(2, SHAPE))
    assert SOURCE not in with_source(PROMPTS, None, SHAPE, takes_source=False).tensors


@pytest.mark.parametrize("takes_source", [True, False])
def test_a_source_that_is_given_stays(takes_source: bool) -> None:
    given = torch.randn(2, 3, 16, 4)  # of any size
    found = with_source(PROMPTS, given, SHAPE, takes_source=takes_source).tensors
    assert found[SOURCE] is given
    assert list(found) == ["embeds", SOURCE]


def test_rows_without_further_sources_join_those_that_have_some() -> None:
    one, two = torch.ones(2, *SHAPE), torch.ones(2, *SHAPE)
    both = with_source(PROMPTS, [one, two], SHAPE, takes_source=True)
    alone = with_source(PROMPTS, one, SHAPE, takes_source=True)
    assert list(both.tensors) == ["embeds", "source", "source_2"]
    joined = Condition.cat([alone, both]).tensors["source_2"]
    assert rows_with_source(joined).tolist() == [False, False, True, True]

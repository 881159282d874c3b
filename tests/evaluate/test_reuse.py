"""Answers are kept as they were given."""

from pathlib import Path

import pytest
import torch

from danceflow.evaluate.asked import inputs_of
from danceflow.evaluate.records import read_evaluation
from danceflow.evaluate.reuse import reused
from danceflow.models.package import read_manifest


def test_answers_are_kept_whatever_their_order_in_memory(reported, tmp_path: Path) -> None:
    """Autoencoders give images with the channels last."""
    found = read_evaluation(reported[1].evaluation("t2i"), "t2i")
    images = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    given = found.fields["start"], list(images)
    assert reused(tmp_path / "kept", lambda: given) == given
    result, kept = reused(tmp_path / "kept", lambda: pytest.fail("they are asked for again"))
    assert result == found.fields["start"]
    assert torch.equal(torch.stack(list(kept)), images)


def test_answers_on_another_grid_are_others(reported) -> None:
    params, paths = reported
    meta = read_manifest(paths.student)
    plain, shifted = (
        inputs_of(params, paths, "t2i", told) for told in (meta, {**meta, "shift": 2.0})
    )
    assert plain != shifted

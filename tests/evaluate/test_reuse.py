"""Answers are kept as they were given."""

from pathlib import Path

import pytest
import torch

from danceflow.evaluate.records import read_evaluation
from danceflow.evaluate.reuse import reused


def test_answers_are_kept_whatever_their_order_in_memory(reported, tmp_path: Path) -> None:
    """Autoencoders give images with the channels last."""
    found = read_evaluation(reported[1].evaluation("t2i"), "t2i")
    images = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    given = found.fields["start"], list(images)
    assert reused(tmp_path / "kept", lambda: given) == given
    result, kept = reused(tmp_path / "kept", lambda: pytest.fail("they are asked for again"))
    assert result == found.fields["start"]
    assert torch.equal(torch.stack(list(kept)), images)

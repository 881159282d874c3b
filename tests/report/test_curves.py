"""The training's record is read back, and what is no record is told with its line."""

from pathlib import Path

import pytest
from training_record import write_metrics

from danceflow.errors import DataError
from danceflow.report.curves import read_curves


def test_a_record_is_sorted_by_capability_and_bin(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", ("t2i",))
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert curves.scores == {"t2i": [(s, pytest.approx(0.1 + s / 200)) for s in (0, 20, 40, 60)]}
    assert [step for step, _ in curves.losses["t2i"]] == [10, 20, 30, 40, 50, 60]
    assert list(curves.bin_losses["t2i"]) == ["0.00-0.25", "0.75-1.00"]
    assert curves.bin_losses["t2i"]["0.75-1.00"][0] == (10, pytest.approx(0.2))
    assert curves.seconds == 6.0


def test_bins_come_in_order_however_they_were_met(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "capability": "a", "loss": 1, "sigma_bins": {"0.50-0.75": 1}}\n'
        '{"step": 2, "capability": "a", "loss": 1, "sigma_bins": {"0.00-0.25": 1}}\n'
    )
    assert list(read_curves(path).bin_losses["a"]) == ["0.00-0.25", "0.50-0.75"]


def test_a_method_that_trains_nothing_has_no_losses(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "scores": {"t2i": 0.5}}\n')
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert (curves.losses, curves.seconds) == ({}, None)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, "capability": "t2i", "lo',
        "[1, 2]",
        '{"capability": "t2i", "loss": 1.0}',
        '{"step": 2, "loss": 1.0}',
        '{"step": 2, "capability": "t2i", "loss": null}',
        '{"step": 2, "capability": "t2i", "loss": 1.0, "sigma_bins": 3}',
        '{"step": 2, "scores": {"t2i": "high"}}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "capability": "t2i", "loss": 1.0}\n' + line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is no record"):
        read_curves(path)


def test_a_missing_record_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file.*dvc repro distill"):
        read_curves(tmp_path / "metrics.jsonl")

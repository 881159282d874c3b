"""Two evaluations are the same by rows, steps, seeds, guidance, judge and code alone."""

import shutil
from pathlib import Path

import pytest
from tiny_project import small_data
from training_record import CAPABILITIES

from danceflow.errors import DataError
from danceflow.evaluate.identity import identity_of
from danceflow.ops import keys
from danceflow.params.read import override, parse_params
from danceflow.paths import Paths
from danceflow.report.evidence import read_identity

JUDGE = {
    "url": "http://127.0.0.1:1/v1",
    "model": "m",
    "key_variable": None,
    "offline": True,
    "is_score": True,
    "num_samples": 9,
    "num_retries": 0,
    "max_unusable": 0.0,
    "timeout_s": 1.0,
    "price_in": 0.0,
    "price_out": 0.0,
}


def identity(paths: Paths, **changes):
    data = override(small_data(CAPABILITIES), changes)
    return identity_of(parse_params(data, "test"), paths, "t2i")


def test_the_stage_leaves_it_with_its_pictures(reported) -> None:
    params, paths = reported
    for name in CAPABILITIES:
        assert read_identity(paths, name) == identity_of(params, paths, name)
    rows = {read_identity(paths, name)["rows"] for name in CAPABILITIES}
    assert len(rows) == len(CAPABILITIES)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("evaluate.num_steps", 3, "num_steps"),
        ("evaluate.num_steps", {"t2i": 3, "local_edit": 2, "global_edit": 2}, "num_steps"),
        ("evaluate.seeds", [0, 1], "seeds"),
        ("evaluate.guidance", 1.5, "guidance"),
        ("evaluate.num_samples", 1, "num_samples"),
        ("evaluate.judge", JUDGE, "judge"),
        ("run.dtype", "bfloat16", "dtype"),
    ],
)
def test_what_decides_a_score_is_part_of_it(reported, name, value, part) -> None:
    before, after = identity(reported[1]), identity(reported[1], **{name: value})
    assert [key for key in before if before[key] != after[key]] == [part]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("evaluate.num_bootstrap", 7),
        ("evaluate.batch_size", 7),
        ("evaluate.judge", {**JUDGE, "is_score": False}),
        ("distill.num_updates", 7),
        ("gate.max_regression", 0.5),
        ("run.num_threads", 2),
    ],
)
def test_what_does_not_is_none(reported, name, value) -> None:
    assert identity(reported[1]) == identity(reported[1], **{name: value})


def test_another_row_or_another_line_of_code_is_another_evaluation(
    reported, tmp_path: Path
) -> None:
    params, paths = reported
    copy = Paths(tmp_path / "copy")
    shutil.copytree(paths.buckets, copy.buckets)
    assert identity_of(params, copy, "t2i") == identity_of(params, paths, "t2i")
    with pytest.raises(DataError, match="no prepared rows"):
        identity_of(params, Paths(tmp_path), "t2i")
    for file in (copy.bucket("t2i") / "test").glob("*.arrow"):
        file.write_bytes(file.read_bytes() + b"x")
    assert identity_of(params, copy, "t2i")["rows"] != identity_of(params, paths, "t2i")["rows"]

    source = Path(keys.__file__).parents[1]
    shutil.copytree(source, copy.root / "src" / "danceflow")
    assert keys.evaluation_code(copy.root) == keys.evaluation_code(paths.root)
    score = copy.root / "src" / "danceflow" / "evaluate" / "score.py"
    score.write_text(score.read_text() + "CHANGED = 1\n")
    assert keys.evaluation_code(copy.root) != keys.evaluation_code(paths.root)

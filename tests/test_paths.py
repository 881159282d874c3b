"""Places below a checkout, and how the checkout is found."""

from pathlib import Path

import pytest

from danceflow.errors import UsageError
from danceflow.paths import Paths, find_root
from danceflow.stages import STAGES


def test_the_root_is_found_from_any_folder_below(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_root(below) == tmp_path.resolve()
    assert find_root(tmp_path) == tmp_path.resolve()


def test_outside_a_checkout_is_told(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").touch()
    with pytest.raises(UsageError, match="dvc.yaml and params.yaml"):
        find_root(tmp_path)


def test_the_stages_write_where_the_paths_say() -> None:
    paths = Paths(Path("/checkout"))
    known = {
        paths.buckets,
        paths.data_report,
        paths.teachers,
        paths.teachers_report,
        paths.teachers_images,
        paths.cache("{item}"),
        paths.student,
        paths.distill_report,
        paths.evaluation("{item}"),
        paths.evaluation_images("{item}"),
        paths.gate,
        paths.report_page,
        paths.summary,
        paths.metrics,
    }
    assert {paths.root / out.path for stage in STAGES.values() for out in stage.outs} == known


def test_what_lies_in_a_folder() -> None:
    paths = Paths(Path("/checkout"))
    assert paths.bucket("t2i").parent == paths.buckets
    assert paths.teacher("base").parent == paths.teachers
    assert paths.cache("t2i").parent == paths.caches
    assert paths.distill_metrics.parent == paths.distill_report
    assert paths.run_pointer.parent == paths.distill_report
    assert paths.work("0a1b").is_relative_to(paths.scratch)
    assert paths.params.parent == paths.graph.parent == paths.root

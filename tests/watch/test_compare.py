"""Samples against a real project: its buckets, its evaluations, its student's text encoder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from danceflow.data.buckets import read_bucket
from danceflow.errors import DataError, UsageError
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.pictures import png_base64
from danceflow.registry.open import open_folder
from danceflow.service.served import ServedLog, ServedRow, now
from danceflow.watch.compare import PAGE, RESULT, compare, training_prompts, write_comparison

EVIL = "<script>alert(1)</script> =HYPERLINK('x') {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def project(reported) -> tuple[Params, Paths]:
    params, paths = reported
    watch = params.watch.model_copy(update={"min_requests": 8})
    return params.model_copy(update={"watch": watch}), paths


@pytest.fixture(scope="module")
def student(project):
    return open_folder(project[1].student, None, "cpu")


def row(prompt: str, *, source: bytes | None = None, image: bytes | None = None) -> ServedRow:
    return ServedRow(
        now(), 3, "d" * 64, prompt, source is not None, 2, 1.0, 0.1,
        None if source is None else png_base64(source),
        None if image is None else png_base64(image),
    )  # fmt: skip


def served(paths: Paths, capability: str, *, right: bool = True) -> list[ServedRow]:
    """Rows of a bucket, answered with their exact targets, or with those of other rows."""
    dataset = read_bucket(paths.bucket(capability), "train")
    rows = list(dataset)
    targets = [item["target"]["bytes"] for item in rows]
    if not right:
        targets = [item["source"]["bytes"] for item in rows]
    return [
        row(item["prompt"], source=item["source"] and item["source"]["bytes"], image=target)
        for item, target in zip(rows, targets, strict=True)
    ]


def decisions(found) -> dict[tuple[str, str], str]:
    return {(check.kind, check.name): check.decision for check in found.checks}


def test_the_training_s_own_requests_cross_nothing(project, student, tmp_path: Path) -> None:
    params, paths = project
    ServedLog(tmp_path, 1.0).write(served(paths, "t2i") + served(paths, "local_edit"))
    found = compare(params, paths, student, tmp_path, 1.0)
    assert found.crossed == ()
    assert found.versions == {"3": 24}
    told = decisions(found)
    assert told["generate", "unknown_words"] == told["edit", "length_shift"] == "within"
    # The random student scores next to nothing; the exact answers lack nothing of that.
    assert told["generate", "score_loss"] != "crossed"
    metrics = found.metrics()
    assert metrics["watch/crossed"] == 0.0
    assert metrics["watch/generate/served"] == metrics["watch/edit/served"] == 12.0


def test_pictures_that_are_worse_than_the_evaluation_s_are_seen(
    project, student, tmp_path: Path
) -> None:
    params, paths = project
    name = "local_edit"
    text = paths.evaluation(name).read_text()
    evaluation = json.loads(text)
    categories = evaluation["fields"]["student"]["categories"]
    evaluation["fields"]["student"]["categories"] = dict.fromkeys(categories, 8.0)
    paths.evaluation(name).write_text(json.dumps(evaluation))
    try:
        for right, decision in ((True, "within"), (False, "crossed")):
            folder = tmp_path / str(right)
            ServedLog(folder, 1.0).write(served(paths, name, right=right))
            assert (
                decisions(compare(params, paths, student, folder, 1.0))["edit", "score_loss"]
                == decision
            )
    finally:
        paths.evaluation(name).write_text(text)


def test_other_requests_cross_limits_and_the_page_shows_them_as_text(
    project, student, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params, paths = project
    foreign = [f"{EVIL} number {number} of a very long list of words" for number in range(12)]
    rows = [row(prompt) for prompt in foreign]
    rows[0] = replace(rows[0], time="2999-01-01T00:00:00.000000+00:00")
    ServedLog(tmp_path, 1.0).write(rows)
    found = compare(params, paths, student, tmp_path, 1.0)
    assert "samples of a time to come: 1;" in caplog.text
    told = decisions(found)
    assert told["generate", "unknown_words"] == told["generate", "length_shift"] == "crossed"
    assert told["generate", "score_loss"] == "unknown"
    assert found.kinds["generate"].words["script"] == 12
    elsewhere = replace(paths, root=tmp_path)
    folder = write_comparison(found, elsewhere)
    assert json.loads((folder / RESULT).read_text())["versions"] == {"3": 12}
    page = (folder / PAGE).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "Limits crossed" in page
    assert "http" not in page.replace("http-equiv", "")


def test_no_samples_are_told(project, student, tmp_path: Path) -> None:
    params, paths = project
    with pytest.raises(UsageError, match=r"holds no request of the last 7 days; .*--sample-rate"):
        compare(params, paths, student, tmp_path, 7.0)
    ServedLog(tmp_path, 1.0).write([replace(row("a ring"), time="2020-01-01T00:00:00")])
    with pytest.raises(UsageError, match="holds no request"):
        compare(params, paths, student, tmp_path, 7.0)


def test_a_damaged_picture_is_told(project, student, tmp_path: Path) -> None:
    params, paths = project
    ServedLog(tmp_path, 1.0).write([row("a ring", image=b"no picture")])
    with pytest.raises(DataError, match="is no picture"):
        compare(params, paths, student, tmp_path, 7.0)


def test_training_prompts_are_those_of_the_kind(project) -> None:
    params, paths = project
    generated = training_prompts(params, paths, is_edit=False)
    edited = training_prompts(params, paths, is_edit=True)
    assert (len(generated), len(edited)) == (12, 24)
    assert not set(generated) & set(edited)

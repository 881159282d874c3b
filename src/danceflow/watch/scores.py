"""Scores of served pictures: by their world where it knows the request, else by the judge.

A world scores an answer by what it knows of the row. A served request is a known one if a row of
the buckets has its prompt and, for an edit, its pictures, all of them in their order. What is known
of no row can only be judged by a vision model, where the parameters name one; it sees them all.
"""

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from danceflow.data.buckets import read_bucket, source_columns
from danceflow.errors import DataError
from danceflow.evaluate.judge.endpoint import Endpoint, Unusable
from danceflow.evaluate.judge.questions import BEST_MARK, overall, questions_about
from danceflow.evaluate.records import STUDENT, Evaluation, read_evaluation
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.pictures import decode, plain, to_pixels
from danceflow.service.served import ServedRow
from danceflow.worlds.marks import SCORE
from danceflow.worlds.world import Sample, open_world

_LOG = logging.getLogger(__name__)
_SPLITS = ("train", "validation", "test")
_PAPER = "#ffffff"
_JUDGE_SCORE = "judge_score"


@dataclass(frozen=True)
class Scored:
    """A served picture's score and what was to be expected, shares of the best."""

    is_edit: bool
    score: float
    expected: float


@dataclass(frozen=True)
class _Known:
    """A row of a bucket that a request may be."""

    sample: Sample
    target: bytes
    expected: float


def score_served(rows: Sequence[ServedRow], params: Params, paths: Paths) -> list[Scored]:
    """Return the scores of the rows whose pictures were kept and about which something is known.

    Args:
        rows: samples of served requests.
        params: the parameters of the checkout.
        paths: its places; buckets and evaluations are read.

    Raises:
        DataError: a bucket or an evaluation is missing or damaged.
        JudgeError: the judge cannot be reached.
    """
    with_picture = [row for row in rows if row.image and bool(row.source) == row.is_edit]
    if not with_picture:
        return []
    known = _known_rows(params, paths)
    groups: dict[Any, list[tuple[ServedRow, _Known]]] = {}
    others: list[ServedRow] = []
    for row in with_picture:
        item = known.get((row.prompt, *_pixels_of(row.source, *row.further)))
        size = _picture(row.image).size
        if item is None or size != _picture(item.target).size:
            others.append(row)
        else:
            groups.setdefault((row.is_edit, size), []).append((row, item))
    found: list[Scored] = []
    for (is_edit, _), pairs in groups.items():
        found += _marked(pairs, params.data.world, is_edit=is_edit)
    return found + _judged(others, params, paths)


def _marked(
    pairs: "Sequence[tuple[ServedRow, _Known]]", world_name: str, *, is_edit: bool
) -> list[Scored]:
    """Return what a world says of answers of one size and kind."""
    world = open_world(world_name)
    marks = world.marks(
        [item.sample for _, item in pairs],
        _tensor([row.image for row, _ in pairs]),
        _tensor([row.source for row, _ in pairs]) if is_edit else None,
        _tensor([item.target for _, item in pairs]),
    )[SCORE]
    best = world.scale(is_edit=is_edit)
    return [
        Scored(is_edit, mark / best, item.expected)
        for mark, (_, item) in zip(marks, pairs, strict=True)
    ]


def _tensor(pictures: Sequence[str | bytes | None]) -> torch.Tensor:
    return torch.stack([to_pixels(_picture(content)) for content in pictures])


def _known_rows(params: Params, paths: Paths) -> Mapping[tuple[str | bytes, ...], _Known]:
    """Return the rows of all buckets by prompt and pixels of their pictures."""
    found: dict[tuple[str | bytes, ...], _Known] = {}
    world = open_world(params.data.world)
    for name, capability in params.capabilities.items():
        evaluation = read_evaluation(paths.evaluation(name), name)
        expected = evaluation.fields[STUDENT].categories
        for split in _SPLITS:
            try:
                dataset = read_bucket(paths.bucket(capability.bucket), split)
            except DataError:
                if split == "train":
                    raise
                continue  # a split without rows
            for row in dataset:
                sample = world.sample(row)
                if sample.category not in expected or not row["target"]:
                    continue
                cells = [row[column] for column in source_columns(dataset)]
                share = expected[sample.category] / evaluation.scale
                key = (row["prompt"], *_pixels_of(*(cell and cell["bytes"] for cell in cells)))
                found.setdefault(key, _Known(sample, row["target"]["bytes"], share))
    return found


def _judged(rows: Sequence[ServedRow], params: Params, paths: Paths) -> list[Scored]:
    """Return what a judge says of rows, as many as it judges of a category."""
    config = params.evaluate.judge
    if config is None or config.offline or not rows:
        return []
    expected = _judge_expected(params, paths, is_score=config.is_score)
    found = []
    endpoint = Endpoint(config, paths.judge_answers)
    with endpoint.client() as client:
        for row in rows[: config.num_samples]:
            if row.is_edit not in expected:
                continue
            marks: dict[str, float] = {}
            shown = [content for content in map(_bytes, (row.source, *row.further)) if content]
            questions = questions_about(row.prompt, "", shown, _bytes(row.image) or b"")
            for question in questions:
                mark = endpoint.ask(question, client)
                if isinstance(mark, Unusable):
                    _LOG.warning("a served picture is not judged: %s", mark.reason)
                    break
                marks[question.kind] = mark
            if len(marks) == len(questions):
                best = BEST_MARK if row.is_edit else 1.0
                found.append(Scored(row.is_edit, overall(marks) / best, expected[row.is_edit]))
    return found


def _judge_expected(params: Params, paths: Paths, *, is_score: bool) -> dict[bool, float]:
    """Return the judge's mean score in the evaluations, by whether they are edits."""
    shares: dict[bool, list[float]] = {}
    for name, capability in params.capabilities.items():
        evaluation: Evaluation = read_evaluation(paths.evaluation(name), name)
        student = evaluation.fields[STUDENT]
        best = BEST_MARK if capability.needs_source else 1.0
        if is_score:
            shares.setdefault(capability.needs_source, []).append(student.score / evaluation.scale)
        elif _JUDGE_SCORE in student.metrics:
            shares.setdefault(capability.needs_source, []).append(
                student.metrics[_JUDGE_SCORE] / best
            )
    return {is_edit: sum(items) / len(items) for is_edit, items in shares.items()}


def _bytes(content: str | bytes | None) -> bytes | None:
    if isinstance(content, str):
        return base64.b64decode(content, validate=True)
    return content


def _picture(content: str | bytes | None) -> Image.Image:
    """Return a kept picture.

    Raises:
        DataError: it is damaged.
    """
    try:
        return plain(decode(_bytes(content) or b""), _PAPER)
    except ValueError as error:
        raise DataError(f"a kept picture is damaged: {error}") from error


def _pixels_of(*contents: str | bytes | None) -> list[bytes]:
    """Return what pictures share that show the same, one each; nothing where there is none."""
    pictures = [_picture(content) for content in contents if content is not None]
    return [repr(picture.size).encode() + picture.tobytes() for picture in pictures]

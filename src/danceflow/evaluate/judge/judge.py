"""Scores by a vision model: VIEScore for edits, GenEval's question for pictures from prompts."""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from danceflow.errors import JudgeError
from danceflow.evaluate.judge.endpoint import Endpoint, Unusable
from danceflow.evaluate.judge.questions import Question, overall, questions_about
from danceflow.evaluate.records import STANDARD, LeftOut
from danceflow.evaluate.task import Row, Task
from danceflow.ops.files import append_text, write_bytes
from danceflow.pictures import png_bytes, to_picture

if TYPE_CHECKING:
    from danceflow.params.sections import JudgeParams

_LOG = logging.getLogger(__name__)
_NUM_THREADS = 4
_MIN_SIDE = 256
"""Pixels of a picture's side that the judge sees at least; small pictures are enlarged."""

JUDGE = "judge_"
"""Begins the names of the metrics that a judge gives beside the score."""

QUESTIONS = "questions.jsonl"


@dataclass(frozen=True)
class Judged:
    """The marks of one answer: ``score`` and, for edits, ``sc`` and ``pq``."""

    score: float
    marks: Mapping[str, float]


@dataclass
class Judge:
    """Asks about the answers of fields, one field after the other.

    Attributes:
        config: the ``evaluate.judge`` section.
        endpoint: where to ask.
        export: folder for the questions that an offline judge leaves.
        num_open: questions that nobody has answered yet.
        asked: the rows that were to be judged.
        left_out: the rows without a usable answer about some field, with the reasons; they count
            for no field, so that scores stay paired.
    """

    config: "JudgeParams"
    endpoint: Endpoint
    export: Path
    num_open: int = field(default=0)
    asked: set[Row] = field(default_factory=set)
    left_out: dict[Row, list[str]] = field(default_factory=dict)

    def rows(self, task: Task) -> list[int]:
        """Return the rows of a task that are judged.

        All of them when the judge gives the score, else the first standard ones of every category.
        """
        if self.config.is_score:
            return list(range(task.num_rows))
        taken: dict[str, int] = {}
        rows = []
        for place in task.where(STANDARD):
            category = task.rows[place].category
            if taken.get(category, 0) < self.config.num_samples:
                taken[category] = taken.get(category, 0) + 1
                rows.append(place)
        return rows

    def score(self, name: str, task: Task, images: Sequence[Tensor]) -> dict[Row, Judged]:
        """Return the marks of a field's answers, by row.

        A row without a usable answer is left out, and no further field is asked about it. An
        offline judge sends nothing: rows whose answers are not kept are missing, and their
        questions and pictures are exported.

        Args:
            name: of the field.
            task: what it was asked.
            images: its answers.

        Raises:
            JudgeError: the endpoint takes no question, or more rows than may be are left out.
        """
        places = self.rows(task)
        self.asked |= {task.rows[place] for place in places}
        pictures = task.pictures
        asked = {
            task.rows[place]: self._questions(task.rows[place], pictures[place], images[place])
            for place in places
            if task.rows[place] not in self.left_out
        }
        if self.config.offline:
            return self._offline(name, task, asked)
        flat = [(row, question) for row, items in asked.items() for question in items]
        marks: dict[Row, dict[str, float]] = {row: {} for row in asked}
        with self.endpoint.client() as client, ThreadPoolExecutor(_NUM_THREADS) as pool:
            jobs = [pool.submit(self.endpoint.ask, question, client) for _, question in flat]
            try:
                for (row, question), job in zip(
                    flat, tqdm(jobs, desc=f"judge {name}", mininterval=2), strict=True
                ):
                    found = job.result()
                    if isinstance(found, Unusable):
                        self._leave_out(row, name, task, question, found)
                    else:
                        marks[row][question.kind] = found
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {
            row: Judged(overall(found), found)
            for row, found in marks.items()
            if row not in self.left_out
        }

    def require_all(self, task: Task) -> None:
        """Check that what the score goes by is there, where it goes by the judge.

        Args:
            task: what was to be judged.

        Raises:
            JudgeError: answers are missing, or every standard row of a category is left out.
        """
        if not self.config.is_score:
            return
        if self.num_open:
            raise JudgeError(
                f"evaluate.judge: {self.num_open} answers are missing and the judge is offline; "
                f"the questions are in {self.export / QUESTIONS}"
            )
        standard = [task.rows[place] for place in task.where(STANDARD)]
        kept = {row.category for row in standard if row not in self.left_out}
        if lost := {row.category for row in standard} - kept:
            raise JudgeError(
                f"evaluate.judge: no row of {', '.join(sorted(lost))} in {task.capability} has "
                f"usable answers:{self._listed()}"
            )

    def rows_left_out(self) -> tuple[LeftOut, ...]:
        """Return the rows without a usable answer, for the record."""
        return tuple(
            LeftOut(
                uid=row.uid,
                category=row.category,
                variant=row.variant,
                seed=row.seed,
                reasons=tuple(reasons),
            )
            for row, reasons in self.left_out.items()
        )

    def _leave_out(
        self, row: Row, name: str, task: Task, question: Question, found: Unusable
    ) -> None:
        """Note a row that cannot be judged.

        Raises:
            JudgeError: these are more rows than may be.
        """
        reason = f"{name}, {question.kind}, key {self.endpoint.key(question)}: {found.reason}"
        self.left_out.setdefault(row, []).append(reason)
        _LOG.warning(
            "%s: row %s, noise seed %d, is left out of every field: %s",
            task.capability,
            row.uid,
            row.seed,
            reason,
        )
        share = len(self.left_out) / len(self.asked)
        if share > self.config.max_unusable:
            raise JudgeError(
                f"evaluate.judge.max_unusable: {self.config.model} gives no usable answer about "
                f"{len(self.left_out)} of {len(self.asked)} rows of {task.capability} so far, more "
                f"than {self.config.max_unusable:.4g} of them; usable answers are kept, the same "
                f"command asks for the others again:{self._listed()}"
            )

    def _listed(self) -> str:
        """Return the rows that are left out and why, a line each."""
        return "".join(
            f"\n  row {row.uid}, noise seed {row.seed}: {reason}"
            for row, reasons in self.left_out.items()
            for reason in reasons
        )

    def note(self) -> str:
        """Return a line for the report: what was asked, what it cost and what is left."""
        usage, config = self.endpoint.usage, self.config
        if config.offline:
            left = f"{self.num_open} questions are exported to {self.export / QUESTIONS}"
            return f"Judge {config.model}: offline, {usage.num_kept} answers were known, {left}"
        cost = usage.cost(config.price_in, config.price_out)
        return (
            f"Judge {config.model}: {usage.num_requests} requests, {usage.num_kept} answers were "
            f"known, {usage.tokens_in} tokens in, {usage.tokens_out} out, cost {cost:.4f}"
        )

    def _questions(
        self, row: Row, sources: Sequence[Tensor], image: Tensor
    ) -> tuple[Question, ...]:
        shown = [_png(source) for source in sources]
        return questions_about(row.prompt, row.category, shown, _png(image))

    def _offline(
        self, name: str, task: Task, asked: Mapping[Row, Sequence[Question]]
    ) -> dict[Row, Judged]:
        """Return what kept answers say, and export the other questions with their pictures."""
        judged: dict[Row, Judged] = {}
        lines = []
        for row, items in asked.items():
            marks: dict[str, float] = {}
            missing = []
            for question in items:
                found = self.endpoint.known(question)
                if isinstance(found, Unusable):
                    self._leave_out(row, name, task, question, found)
                elif found is None:
                    missing.append(question)
                else:
                    marks[question.kind] = found
            if len(marks) == len(items):
                judged[row] = Judged(overall(marks), marks)
            elif row not in self.left_out:
                lines += [self._exported(name, row, question) for question in missing]
        self.num_open += len(lines)
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            append_text(self.export / QUESTIONS, text)
        return judged

    def _exported(self, name: str, row: Row, question: Question) -> dict[str, Any]:
        """Write a question's pictures and returns its line."""
        key = self.endpoint.key(question)
        pictures = [f"{key}-{number}.png" for number in range(len(question.pictures))]
        for picture, content in zip(pictures, question.pictures, strict=True):
            write_bytes(self.export / picture, content)
        return {
            "key": key,
            "field": name,
            "uid": row.uid,
            "category": row.category,
            "kind": question.kind,
            "text": question.text,
            "pictures": pictures,
        }


def _png(image_3HW: Tensor) -> bytes:
    picture = to_picture(image_3HW)
    if (side := min(picture.size)) < _MIN_SIDE:
        factor = -(-_MIN_SIDE // side)
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    return png_bytes(picture)

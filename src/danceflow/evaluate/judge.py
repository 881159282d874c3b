"""Scores by a vision model: VIEScore for edits, GenEval's question for pictures from prompts."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from danceflow.errors import JudgeError
from danceflow.evaluate.endpoint import Endpoint
from danceflow.evaluate.evaluator import Row, Task
from danceflow.evaluate.questions import Question, overall, questions_about
from danceflow.evaluate.records import STANDARD
from danceflow.ops.files import write_bytes
from danceflow.pictures import png_bytes, to_picture

if TYPE_CHECKING:
    from danceflow.schema import JudgeParams

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
    """

    config: "JudgeParams"
    endpoint: Endpoint
    export: Path
    num_open: int = field(default=0)

    def rows(self, task: Task) -> list[int]:
        """Returns the rows of a task that are judged.

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

    def score(self, name: str, task: Task, images: Sequence[Tensor]) -> dict[int, Judged]:
        """Returns the marks of a field's answers, by row of the task.

        An offline judge sends nothing: rows whose answers are not kept are missing, and their
        questions and pictures are exported.

        Args:
            name: of the field.
            task: what it was asked.
            images: its answers.

        Raises:
            JudgeError: the endpoint refuses or gives no usable answer.
        """
        rows = self.rows(task)
        sources = task.sources
        asked = {
            place: self._questions(
                task.rows[place], sources[place] if sources else None, images[place]
            )
            for place in rows
        }
        if self.config.offline:
            return self._offline(name, task, asked)
        import httpx

        flat = [(place, question) for place, items in asked.items() for question in items]
        marks: dict[int, dict[str, float]] = {place: {} for place in rows}
        with httpx.Client() as client, ThreadPoolExecutor(_NUM_THREADS) as pool:
            jobs = [pool.submit(self.endpoint.ask, question, client) for _, question in flat]
            try:
                for (place, question), job in zip(
                    flat, tqdm(jobs, desc=f"judge {name}", mininterval=2), strict=True
                ):
                    marks[place][question.kind] = job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {place: Judged(overall(found), found) for place, found in marks.items()}

    def require_all(self) -> None:
        """Checks that no answer is missing where the score goes by them.

        Raises:
            JudgeError: some are.
        """
        if self.config.is_score and self.num_open:
            raise JudgeError(
                f"evaluate.judge: {self.num_open} answers are missing and the judge is offline; "
                f"the questions are in {self.export / QUESTIONS}"
            )

    def note(self) -> str:
        """Returns a line for the report: what was asked, what it cost and what is left."""
        usage, config = self.endpoint.usage, self.config
        if config.offline:
            left = f"{self.num_open} questions are exported to {self.export / QUESTIONS}"
            return f"Judge {config.model}: offline, {usage.num_kept} answers were known, {left}"
        cost = usage.cost(config.price_in, config.price_out)
        return (
            f"Judge {config.model}: {usage.num_requests} requests, {usage.num_kept} answers were "
            f"known, {usage.tokens_in} tokens in, {usage.tokens_out} out, cost {cost:.4f}"
        )

    def _questions(self, row: Row, source: Tensor | None, image: Tensor) -> tuple[Question, ...]:
        shown = None if source is None else _png(source)
        return questions_about(row.prompt, row.category, shown, _png(image))

    def _offline(
        self, name: str, task: Task, asked: Mapping[int, Sequence[Question]]
    ) -> dict[int, Judged]:
        """Returns what kept answers say, and exports the other questions with their pictures."""
        judged: dict[int, Judged] = {}
        lines = []
        for place, items in asked.items():
            found = {question.kind: self.endpoint.known(question) for question in items}
            marks = {kind: mark for kind, mark in found.items() if mark is not None}
            if len(marks) == len(items):
                judged[place] = Judged(overall(marks), marks)
                continue
            missing = [question for question in items if question.kind not in marks]
            lines += [self._exported(name, task.rows[place], question) for question in missing]
        self.num_open += len(lines)
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            with (self.export / QUESTIONS).open("a", encoding="utf-8") as file:
                file.write(text)
        return judged

    def _exported(self, name: str, row: Row, question: Question) -> dict[str, Any]:
        """Writes a question's pictures and returns its line."""
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

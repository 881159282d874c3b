"""Requests that wait are computed together: one thread, one batch after the other.

Rows of several requests share a batch where the student, the size, the number of steps and the
guidance are the same. A row's result does not depend on the rows beside it (``Student.make``).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from danceflow.errors import DanceflowError
from danceflow.registry.student import Row, UnwantedError
from danceflow.service.live import Served

if TYPE_CHECKING:
    from PIL.Image import Image

_LOG = logging.getLogger(__name__)
_RECENT = 0.2  # weight of the newest batch in the mean of seconds per row


class QueueFullError(DanceflowError):
    """Too many rows wait already.

    Attributes:
        retry_s: seconds after which there may be room.
    """

    def __init__(self, message: str, retry_s: int) -> None:
        super().__init__(message)
        self.retry_s = retry_s


@dataclass(eq=False)
class Job:
    """The rows of one request.

    Attributes:
        served: the student that the request came in with.
        rows: what to make.
        steps: solver steps.
        guidance: guidance scale.
        answer: the pictures, one per row.
        is_wanted: whether somebody waits; not wanted, it is not begun, or not finished.
        num_steps_begun: steps that were begun, over all rows.
        seconds: of the batches that it was in, its share of each.
        pictures: those that are made, by their place.
    """

    served: Served
    rows: Sequence[Row]
    steps: int
    guidance: float
    answer: "asyncio.Future[list[Image]]"
    is_wanted: bool = True
    num_steps_begun: int = 0
    seconds: float = 0.0
    pictures: "dict[int, Image]" = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A row in the queue."""

    job: Job
    place: int
    since: float

    @property
    def key(self) -> tuple[Any, ...]:
        """What rows of one batch share."""
        row = self.job.rows[self.place]
        num_sources = 0 if row.source is None else 1 + len(row.further)
        return id(self.job.served), row.size, num_sources, self.job.steps, self.job.guidance


class Batcher:
    """The queue and the thread that works it off."""

    def __init__(
        self,
        max_queue: int,
        window_s: float,
        on_batch: Callable[[int, float], None],
        on_dropped: Callable[[int], None],
    ) -> None:
        """Start the thread.

        Args:
            max_queue: rows that may wait.
            window_s: seconds that the first row waits for others while its batch has room.
            on_batch: told of every batch: rows, and seconds it took.
            on_dropped: told how many rows were left out, as nobody waited for them any more.
        """
        self._max_queue = max_queue
        self._window_s = window_s
        self._on_batch = on_batch
        self._on_dropped = on_dropped
        self._queue: list[_Waiting] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._seconds_per_row = 0.1
        self._thread = threading.Thread(target=self._work, name="danceflow-batches", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return how many rows wait."""
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Put the rows of a job behind those that wait.

        Raises:
            QueueFullError: they would be too many; none is taken.
        """
        with self._changed:
            self._drop_unwanted()
            if len(self._queue) + len(job.rows) > self._max_queue:
                raise self.full()
            now = time.monotonic()
            self._queue += [_Waiting(job, place, now) for place in range(len(job.rows))]
            self._changed.notify()

    def full(self) -> QueueFullError:
        """Return the error that says how long the queue is."""
        seconds = max(1, round(len(self._queue) * self._seconds_per_row))
        return QueueFullError(
            f"{len(self._queue)} pictures wait already, at most {self._max_queue}; try again in "
            f"{seconds} seconds",
            seconds,
        )

    def give_up(self, job: Job) -> None:
        """Leave out what is not made yet of a job that nobody waits for."""
        job.is_wanted = False
        with self._changed:
            self._drop_unwanted()
            self._changed.notify()

    def close(self) -> None:
        """Work off what waits, then end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            began = time.monotonic()
            self._compute(batch)
            seconds = time.monotonic() - began
            self._seconds_per_row += _RECENT * (seconds / len(batch) - self._seconds_per_row)
            self._on_batch(len(batch), seconds)

    def _next(self) -> list[_Waiting]:
        """Return the next batch, the first row that waits and those like it; empty: the end."""
        with self._changed:
            while True:
                self._drop_unwanted()
                if not self._queue:
                    if self._is_closed:
                        return []
                    self._changed.wait()
                    continue
                first = self._queue[0]
                alike = [waiting for waiting in self._queue if waiting.key == first.key]
                batch = alike[: first.job.served.student.together]
                left = first.since + self._window_s - time.monotonic()
                has_room = len(batch) < first.job.served.student.together
                if has_room and left > 0 and not self._is_closed:
                    self._changed.wait(left)
                    continue
                taken = set(batch)
                self._queue = [waiting for waiting in self._queue if waiting not in taken]
                return batch

    def _compute(self, batch: Sequence[_Waiting]) -> None:
        """Make a batch's pictures; where it fails, the jobs in it fail one by one."""
        first = batch[0].job
        jobs = list(dict.fromkeys(waiting.job for waiting in batch))

        def wanted() -> bool:
            for waiting in batch:
                waiting.job.num_steps_begun += 1
            return any(job.is_wanted for job in jobs)

        began = time.monotonic()
        try:
            pictures = first.served.student.make(
                [waiting.job.rows[waiting.place] for waiting in batch],
                first.steps,
                first.guidance,
                wanted=wanted,
            )
        except UnwantedError:
            self._on_dropped(len(batch))
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._compute([waiting for waiting in batch if waiting.job is job])
                return
            _LOG.exception("a batch of %d pictures failed", len(batch))
            first.is_wanted = False
            _settle(first.answer, error)
        else:
            seconds = (time.monotonic() - began) / len(batch)
            for waiting, picture in zip(batch, pictures, strict=True):
                job = waiting.job
                job.seconds += seconds
                job.pictures[waiting.place] = picture
                if len(job.pictures) == len(job.rows):
                    _settle(job.answer, [job.pictures[i] for i in range(len(job.rows))])

    def _drop_unwanted(self) -> None:
        kept = [waiting for waiting in self._queue if waiting.job.is_wanted]
        if dropped := len(self._queue) - len(kept):
            self._queue = kept
            self._on_dropped(dropped)


def _settle(answer: "asyncio.Future[list[Image]]", result: "list[Image] | Exception") -> None:
    """Give the result to whoever waits in the loop; it may be gone."""

    def settle() -> None:
        if answer.done():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    loop = answer.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)

"""What people have asked for: one after the other, told step by step, until it is in the tree."""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from danceflow.errors import DanceflowError
from danceflow.service.limits import RequestError
from danceflow.studio.models import Answer, Models, Progress, Wish
from danceflow.studio.pixels import digest_of, kept, put_back
from danceflow.studio.recipe import Recipe
from danceflow.studio.tree import Made, Node, Tree

if TYPE_CHECKING:
    from PIL.Image import Image

_LOG = logging.getLogger(__name__)
_KEEP_S = 600.0
_MAX_ENDED = 4
CREATE, EDIT = "text to image", "edit"


@dataclass(eq=False)
class Task:
    """A wish for one model or several, and what became of it.

    Attributes:
        id: its name.
        person: who asked; a word that the browser keeps.
        keys: of the models, each asked for the same.
        wish: what shall be made.
        parent: the node to change; None: new pictures.
        mask: what may change, mode L; None: everything.
        progress: of the model that is asked now.
        made: names of the nodes that came of it.
        problem: why it failed; empty where it did not.
        is_over: whether nothing more comes.
        is_cancelled: whether somebody wanted it no more.
        ended: when, by a clock that only runs on.
    """

    person: str
    keys: Sequence[str]
    wish: Wish
    parent: str | None
    mask: "Image | None"
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    progress: Progress = field(default_factory=Progress)
    made: list[str] = field(default_factory=list)
    problem: str = ""
    is_over: bool = False
    is_cancelled: bool = False
    ended: float = 0.0
    work: "asyncio.Task[None] | None" = None

    @property
    def num_pictures(self) -> int:
        """How many are to be made."""
        return len(self.keys) * len(self.wish.seeds)

    @property
    def share(self) -> float | None:
        """How much is done, from 0 to 1; None: it cannot be told."""
        begun, steps = self.progress.step
        of_one = begun / steps if steps else self.progress.num_done / len(self.wish.seeds)
        done = len(self.made) / len(self.wish.seeds)
        return None if not (steps or of_one or done) else (done + of_one) / len(self.keys)

    def told(self, before: int) -> str:
        """Return how it stands, in a few words.

        Args:
            before: unfinished tasks before it.
        """
        if self.is_cancelled:
            return "cancelled"
        if self.is_over:
            return self.problem or "done"
        begun, steps = self.progress.step
        if begun:
            return f"step {begun} of {steps}"
        if before and self.progress.state == "is made":
            return f"waits, {before} before it"
        return "waits" if self.progress.state == "is made" else self.progress.state


class Tasks:
    """The queue. Its tasks run in the loop that ``begin`` is called in."""

    def __init__(self, tree: Tree, models: Models, max_waiting: int) -> None:
        """Take the tree and the models.

        Args:
            tree: takes what is made.
            models: make it.
            max_waiting: pictures that may be asked for and not be made yet.
        """
        self._tree = tree
        self._models = models
        self._max_waiting = max_waiting
        self._tasks: list[Task] = []

    def begin(self, task: Task) -> None:
        """Begin a task.

        Raises:
            RequestError: too many wait already.
        """
        self._forget()
        waiting = sum(item.num_pictures for item in self._tasks if not item.is_over)
        if waiting + task.num_pictures > self._max_waiting:
            raise RequestError(
                503,
                f"{waiting} pictures wait already, at most {self._max_waiting}; try again when "
                "some are made",
            )
        self._tasks.append(task)
        task.work = asyncio.create_task(self._work(task))

    def cancel(self, name: str, person: str) -> None:
        """End a task of one's own, or put it out of sight when it is over.

        Raises:
            RequestError: it is somebody else's, or not there.
        """
        for task in self._tasks:
            if task.id == name:
                if task.person != person:
                    raise RequestError(403, "somebody else asked for this; only they can cancel it")
                if task.is_over:
                    self._tasks.remove(task)
                elif task.work is not None:
                    task.is_cancelled = True
                    task.work.cancel()
                return
        raise RequestError(404, "this is over already")

    def seen_by(self, person: str) -> list[tuple[Task, str]]:
        """Return the tasks that a person is told of, each with how it stands."""
        self._forget()
        found = []
        before = 0
        for task in self._tasks:
            if not task.is_over or task.person == person:
                found.append((task, task.told(before)))
            before += not task.is_over
        return found

    def get(self, name: str) -> Task | None:
        """Return a task that is still known."""
        return next((task for task in self._tasks if task.id == name), None)

    async def close(self) -> None:
        """End all."""
        work = [task.work for task in self._tasks if task.work is not None and not task.is_over]
        for item in work:
            item.cancel()
        await asyncio.gather(*work, return_exceptions=True)

    async def _work(self, task: Task) -> None:
        try:
            for key in task.keys:
                task.progress = Progress()
                answer = await self._models.make(key, task.wish, task.progress)
                nodes = await anyio.to_thread.run_sync(self._keep, task, answer)
                task.made += [node.id for node in nodes]
            task.progress = Progress("done")
        except asyncio.CancelledError:
            task.is_cancelled = True
        except RequestError as error:
            task.problem = error.reason
        except DanceflowError as error:
            task.problem = str(error)
        except Exception:
            _LOG.exception("a task of the studio failed")
            task.problem = "the studio failed on this; its log says why"
        finally:
            task.is_over = True
            task.ended = time.monotonic()

    def _keep(self, task: Task, answer: Answer) -> list[Node]:
        """Put what was made into the tree, the source's pixels back where a mask says so."""
        wish, about, seen = task.wish, answer.about, answer.seen
        made = []
        for seed, new in zip(wish.seeds, answer.pictures, strict=True):
            picture = new
            if seen is not None and task.mask is not None:
                picture = put_back(seen, new, task.mask)
            recipe = Recipe(
                prompt=wish.prompt,
                capability=CREATE if seen is None else EDIT,
                seed=seed,
                steps=answer.steps,
                guidance=wish.guidance,
                size=f"{picture.width}x{picture.height}",
                model=about.name,
                version=about.version,
                digest=about.digest,
                sources=() if seen is None else (digest_of(seen),),
                has_mask=task.mask is not None,
            )
            stays = None if seen is None or seen.size != picture.size else kept(seen, picture)
            made.append(
                Made(
                    picture,
                    recipe,
                    seen,
                    task.mask,
                    answer.seconds,
                    None if stays is None else stays.nearly,
                    None if stays is None else stays.exactly,
                    answer.notes,
                )
            )
        return self._tree.add(task.parent, made, task.person)

    def _forget(self) -> None:
        """Drop what was over long ago, and all but the last few of what is."""
        now = time.monotonic()
        ended = [task for task in self._tasks if task.is_over]
        for task in ended:
            is_old = now - task.ended > _KEEP_S
            theirs = [other for other in ended if other.person == task.person]
            if is_old or task in theirs[:-_MAX_ENDED]:
                self._tasks.remove(task)

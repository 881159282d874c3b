"""The models that a designer chooses from: students, teachers, or a model service.

Each is in memory once, whatever it is called: the champion and the version that it is are one.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from danceflow.data.sizes import read_size, shown
from danceflow.errors import DanceflowError
from danceflow.registry.student import Row, Student
from danceflow.service.batching import Batcher, Job, QueueFullError
from danceflow.service.limits import RequestError
from danceflow.service.live import Live, Served, Source

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from danceflow.params.sections import Params

_LOG = logging.getLogger(__name__)
_MAX_LOADED = 4
_FRESH_S = 10.0
_LOOK_S = 0.1
TEACHER = "teacher:"


@dataclass(frozen=True)
class Choice:
    """A model that can be chosen.

    Attributes:
        key: what forms send.
        label: what people read.
        group: what it stands under in a list.
    """

    key: str
    label: str
    group: str


@dataclass(frozen=True)
class About:
    """What is known of a model.

    Attributes:
        name: of the registered model, the folder or the teacher.
        version: in the registry; 0: it comes from elsewhere.
        digest: SHA-256 of its files.
        steps: that it was made for, of what is generated.
        edit_steps: of an edit.
        sizes: ``WIDTHxHEIGHT`` of what it makes, the usual one first.
        max_sources: pictures that an edit may have.
    """

    name: str
    version: int
    digest: str
    steps: int
    edit_steps: int
    sizes: tuple[str, ...]
    max_sources: int

    @property
    def usual_steps(self) -> str:
        """The steps in words: one number, or both."""
        if self.steps == self.edit_steps:
            return str(self.steps)
        return f"{self.steps}, edits {self.edit_steps}"


@dataclass(frozen=True)
class Wish:
    """What a model shall make: one picture for every seed.

    Attributes:
        prompt: what to show, or to change.
        source: the picture to change; None: a new one.
        seeds: of the noise, one for each picture.
        steps: solver steps; None: as many as the model was made for.
        guidance: classifier-free guidance scale.
        size: ``WIDTHxHEIGHT`` of a new picture; None: the usual one.
        further: pictures beside the source, for a model that takes them.
    """

    prompt: str
    source: "Image | None"
    seeds: tuple[int, ...]
    steps: int | None = None
    guidance: float = 1.0
    size: str | None = None
    further: "tuple[Image, ...]" = ()


@dataclass
class Progress:
    """How far a wish is.

    Attributes:
        state: in a word or two.
        job: whose steps are counted; None: steps are not told.
        num_done: pictures that are made.
        told: steps that are begun and all of them, as a service tells; 0 of 0: it does not.
    """

    state: str = "waits"
    job: Job | None = None
    num_done: int = 0
    told: tuple[int, int] = (0, 0)

    @property
    def step(self) -> tuple[int, int]:
        """Steps that are begun, and all of them; 0 of 0 where they are not told."""
        if self.job is None:
            return self.told
        total = self.job.steps * len(self.job.rows)
        return min(self.job.num_steps_begun, total), total


@dataclass(frozen=True)
class Answer:
    """What a model made.

    Attributes:
        about: the model.
        pictures: one for each seed.
        seen: the source as the model saw it; None: there was none.
        further: pictures beside it, likewise.
        steps: solver steps.
        notes: what it did not see of the prompt.
        seconds: for one picture.
    """

    about: About
    pictures: Sequence["Image"]
    seen: "Image | None"
    further: "tuple[Image, ...]"
    steps: int
    notes: tuple[str, ...]
    seconds: float


class Models(Protocol):
    """Where pictures are made."""

    @property
    def is_loading(self) -> bool:
        """Whether the usual model is being loaded for the first time: asking for it waits."""
        ...

    def known(self) -> list[Choice]:
        """Return what can be chosen as far as that is known at once, the usual one first."""
        ...

    async def choices(self) -> tuple[list[Choice], str]:
        """Return what can be chosen, the usual one first, and what is wrong, if anything is."""
        ...

    async def about(self, key: str) -> About:
        """Return what is known of a model.

        Raises:
            RequestError: there is none of that key, or it cannot be had now.
        """
        ...

    async def notes(self, key: str, prompt: str, *, is_edit: bool) -> tuple[str, ...]:
        """Return what a model would not see of a prompt; raises as ``about``."""
        ...

    async def make(self, key: str, wish: Wish, progress: Progress) -> Answer:
        """Return pictures; cancelled, what is not made yet is left out.

        Raises:
            RequestError: the model cannot be had or cannot do it.
        """
        ...

    async def close(self) -> None:
        """End what was begun."""
        ...


@dataclass
class Teachers:
    """The teachers of a checkout, loaded when one is chosen."""

    folder: "Path"
    params: "Params"
    _loaded: Any = field(default=None, init=False)

    def choices(self) -> list[Choice]:
        """Return a teacher for every capability; none where there are no weights."""
        if not self.folder.is_dir():
            return []
        return [
            Choice(f"{TEACHER}{name}", f"{item.teacher} ({_spoken(name)})", "Teachers")
            for name, item in self.params.capabilities.items()
        ]

    def open(self, capability: str, student: Student | None) -> Served:
        """Return a capability's teacher, asked as its student learned from it.

        Args:
            capability: its name.
            student: of these teachers; sizes and frame of its pictures are then the student's.

        Raises:
            WeightsError: a teacher is missing or damaged.
            RequestError: there is no such capability.
        """
        from danceflow.capability import asked
        from danceflow.models.memory import memory_of
        from danceflow.models.package import Package
        from danceflow.models.steps import on_grid
        from danceflow.models.teachers import Teachers as Loaded

        if capability not in self.params.capabilities:
            raise RequestError(404, f"there is no teacher of {capability}")
        if self._loaded is None:
            names = asked(self.params).teachers
            memory = memory_of(self.params.run)
            self._loaded = Loaded(self.folder, self.params.family.name, names, memory)
        loaded: Loaded = self._loaded
        item = self.params.capabilities[capability]
        meta: dict[str, Any] = {}
        if student is not None and student.meta.get("teachers_digest") == loaded.digest:
            meta = dict(student.meta)
        meta["num_steps"] = self.params.evaluate.teacher_steps(capability)
        device = loaded.memory.device
        import torch

        made = Student(
            Package(
                on_grid(loaded.family, meta.get("shift")),
                loaded.field(item.teacher, item.guidance),
                torch.device(device),
                meta,
            )
        )
        return Served(made, f"teacher {item.teacher}", 0, loaded.digest)


class LocalModels:
    """Models in this process, asked through the queue of the model service."""

    def __init__(
        self,
        first: Choice,
        live: Live,
        batcher: Batcher,
        sources: Mapping[str, Source],
        listed: Callable[[], list[tuple[Choice, Source]]],
        teachers: Teachers | None,
    ) -> None:
        """Take what can be chosen; nothing is loaded yet.

        Args:
            first: the usual model, which ``live`` follows.
            live: the student of the service.
            batcher: the queue of the service.
            sources: further students that were named, by their keys.
            listed: tells the students of the registry.
            teachers: of the checkout; None: there is none.
        """
        self._first = first
        self._live = live
        self._batcher = batcher
        self._named = dict(sources)
        self._listed = listed
        self._teachers = teachers
        self._sources: dict[str, Source] = dict(sources)
        self._loaded: OrderedDict[str, Served] = OrderedDict()
        self._lock = threading.Lock()
        self._found: tuple[float, list[Choice], str] | None = None

    @property
    def is_loading(self) -> bool:
        """Whether the usual model is being loaded for the first time."""
        return self._live.is_loading

    def known(self) -> list[Choice]:
        """Return what was named, and the teachers, until the registry was looked at."""
        if self._found is not None:
            return self._found[1]
        named = [Choice(key, key, "Students") for key in self._named if key != self._first.key]
        return [self._first, *named, *([] if self._teachers is None else self._teachers.choices())]

    async def choices(self) -> tuple[list[Choice], str]:
        """Return what can be chosen, the usual one first."""
        if self._found is None or time.monotonic() - self._found[0] > _FRESH_S:
            choices, problem = await anyio.to_thread.run_sync(self._look)
            self._found = time.monotonic(), choices, problem
        return self._found[1], self._found[2]

    def _look(self) -> tuple[list[Choice], str]:
        found = [self._first]
        found += [Choice(key, key, "Students") for key in self._named if key != self._first.key]
        problem = ""
        try:
            for choice, source in self._listed():
                if choice.key not in self._sources and choice.key != self._first.key:
                    self._sources[choice.key] = source
                if choice.key not in {item.key for item in found}:
                    found.append(choice)
        except DanceflowError as error:
            problem = str(error)
        if self._teachers is not None:
            found += self._teachers.choices()
        return found, problem

    async def about(self, key: str) -> About:
        """Return what is known of a model, which is loaded for that."""
        return _about(await self._open(key))

    async def notes(self, key: str, prompt: str, *, is_edit: bool) -> tuple[str, ...]:
        """Return what a model would not see of a prompt."""
        student = (await self._open(key)).student
        return tuple(await anyio.to_thread.run_sync(lambda: student.notes(prompt, is_edit=is_edit)))

    async def make(self, key: str, wish: Wish, progress: Progress) -> Answer:
        """Return pictures."""
        progress.state = "loads the model"
        served = await self._open(key)
        self._require_fit(key, is_edit=wish.source is not None)
        progress.state = "waits"
        rows, seen = await anyio.to_thread.run_sync(rows_wished, served.student, wish)
        steps = wish.steps or served.student.steps(is_edit=wish.source is not None)
        answer: asyncio.Future[list[Image]] = asyncio.get_running_loop().create_future()
        job = Job(served, rows, steps, wish.guidance, answer)
        progress.job = job
        try:
            self._batcher.submit(job)
            progress.state = "is made"
            pictures = await answer
        except QueueFullError as error:
            raise RequestError(503, str(error)) from None
        except asyncio.CancelledError:
            answer.cancel()
            self._batcher.give_up(job)
            raise
        except Exception as error:
            raise RequestError(
                500, "the model failed on this; the studio's log says why"
            ) from error
        seconds = job.seconds / len(rows)
        student = served.student
        notes = await anyio.to_thread.run_sync(
            lambda: student.notes(wish.prompt, is_edit=wish.source is not None)
        )
        return Answer(_about(served), pictures, seen, rows[0].further, steps, tuple(notes), seconds)

    async def close(self) -> None:
        """Leave it to the service, whose queue this is."""

    async def _open(self, key: str) -> Served:
        while self._live.is_loading:  # another name may mean the same model
            await asyncio.sleep(_LOOK_S)
        if key == self._first.key:
            if (served := self._live.served) is None:
                raise RequestError(503, f"there is no model yet: {self._live.problem}")
            return served
        if key not in self._sources and not key.startswith(TEACHER):
            await self.choices()
        try:
            return await anyio.to_thread.run_sync(self._load, key)
        except RequestError:
            raise
        except DanceflowError as error:
            raise RequestError(422, str(error)) from error

    def _load(self, key: str) -> Served:
        """Return a model; one that is loaded already, under whatever name, is not loaded again."""
        first = self._live.served
        with self._lock:
            if key.startswith(TEACHER):
                if self._teachers is None:
                    raise RequestError(404, "there are no teachers here")
                word = key
            elif key in self._sources:
                word = self._sources[key].newest()
                if first is not None and word == f"{first.name}/{first.version}/{first.digest}":
                    return first
            else:
                raise RequestError(404, f"there is no model {key!r} here any more; choose another")
            if word in self._loaded:
                self._loaded.move_to_end(word)
                return self._loaded[word]
            if self._teachers is not None and key.startswith(TEACHER):
                student = None if first is None else first.student
                served = self._teachers.open(key.removeprefix(TEACHER), student)
            else:
                served = self._sources[key].open()
            self._loaded[word] = served
            while len(self._loaded) > _MAX_LOADED:
                self._loaded.popitem(last=False)
            return served

    def _require_fit(self, key: str, *, is_edit: bool) -> None:
        """Check that a teacher is asked for what it teaches."""
        if self._teachers is None or not key.startswith(TEACHER):
            return
        name = key.removeprefix(TEACHER)
        if self._teachers.params.capabilities[name].needs_source != is_edit:
            what = "changes pictures" if is_edit else "makes new pictures"
            raise RequestError(
                422, f"the teacher of {_spoken(name)} is not one that {what}; choose another"
            )


def rows_wished(student: Student, wish: Wish) -> "tuple[tuple[Row, ...], Image | None]":
    """Return what a student shall make, and the source as it sees it.

    Raises:
        RequestError: it does not make this size, or takes fewer pictures.
    """
    further: tuple[Image, ...] = ()
    try:
        if wish.source is None:
            size = student.result_size(read_size(wish.size) if wish.size else None)
            seen = None
        else:
            student.require_sources(1 + len(wish.further))
            seen = student.framed(wish.source)
            further = tuple(student.framed(image, seen) for image in wish.further)
            size = (seen.height, seen.width)
    except DanceflowError as error:
        raise RequestError(422, str(error)) from None
    return tuple(Row(wish.prompt, seen, seed, 0, size, further) for seed in wish.seeds), seen


def _about(served: Served) -> About:
    return About(
        served.name,
        served.version,
        served.digest,
        served.student.steps(is_edit=False),
        served.student.steps(is_edit=True),
        tuple(map(shown, served.student.image_sizes)),
        max(1, served.student.max_sources),
    )


def _spoken(name: str) -> str:
    return {"t2i": "text to image"}.get(name, name.replace("_", " "))

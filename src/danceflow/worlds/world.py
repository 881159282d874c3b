"""The contract of a world: what a row is and what is right, on plain tensors.

A world says how its rows come to be, what a row asks, how answers are scored and what teachers may
be trained on. Everything else (sampling, sizes, means, pages) is the same for all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from danceflow.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from danceflow.data.sizes import Size
    from danceflow.params.sections import DataParams
    from danceflow.paths import Paths

Marks = Mapping[str, Sequence[float]]
"""A value for every row, by the name of the mark."""


@dataclass(frozen=True)
class Sample:
    """What a row asks for.

    Attributes:
        category: what kind of task it is.
        variant: ``standard``, or a kind of test row that is told apart (``reworded``, ...).
        prompt: what is asked.
        is_edit: whether it has a picture to edit.
        facts: what its world knows about the answer.
    """

    category: str
    variant: str
    prompt: str
    is_edit: bool
    facts: Any


class Pool(Protocol):
    """Rows that a teacher is trained on, drawn by their place."""

    @property
    def prompts(self) -> Sequence[str]:
        """[N] what is asked."""
        ...

    @property
    def sizes(self) -> "Sequence[Size]":
        """[N] (height, width) of their pictures in pixels."""
        ...

    @property
    def has_source(self) -> bool:
        """Whether the rows are edits."""
        ...

    def targets(self, rows: Sequence[int]) -> "Tensor":
        """Return the answers of rows of one size, [B, 3, H, W] float32 in [0, 1]."""
        ...

    def sources(self, rows: Sequence[int]) -> "Tensor":
        """Return the pictures that rows of one size edit, [B, 3, H, W] float32 in [0, 1]."""
        ...


@dataclass(frozen=True)
class Lesson:
    """Prompts and what a text encoder must tell about each.

    Attributes:
        prompts: [N] the words.
        labels: [N, K] the class of each of K questions, long.
    """

    prompts: Sequence[str]
    labels: "Tensor"


@dataclass(frozen=True)
class Reading:
    """What a small text encoder learns from text alone, before it reads for a teacher.

    Attributes:
        num_classes: [K] how many answers each question has; all 2 where the question is whether
            the prompt holds a word.
        train: what is learned.
        validation: what is asked afterwards; the lesson itself where there is nothing else.
    """

    num_classes: tuple[int, ...]
    train: Lesson
    validation: Lesson = field(repr=False)


class World(ABC):
    """What a row is and what is right. A subclass is one file and one line in ``WORLDS``."""

    name: ClassVar[str]
    buckets: ClassVar[tuple[str, ...] | None]
    """What it draws; None where its rows are read."""

    @abstractmethod
    def write(self, data: "DataParams", paths: "Paths") -> dict[str, Any]:
        """Write ``data/buckets`` and return what the data report tells of it.

        Raises:
            DataError: what was brought cannot be used.
        """

    @abstractmethod
    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Return what a row of a bucket asks for.

        Raises:
            DataError: the row is not of this world.
        """

    @abstractmethod
    def pool(
        self, dataset: Any, bucket: str, count: int, seed: int, weights: Mapping[str, int]
    ) -> Pool:
        """Return what a teacher of a bucket is trained on.

        Args:
            dataset: the bucket's train split, as ``read_bucket`` gives it.
            bucket: its name.
            count: rows of the pool, at most.
            seed: decides rows that are drawn.
            weights: how often rows of a category are drawn, 1 where it is not named.

        Raises:
            ConfigError: a weight is for a category that the bucket does not have.
        """

    @abstractmethod
    def words(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Return the vocabulary of a small text encoder, given the training prompts."""

    @abstractmethod
    def reading(self, prompts: Sequence[str], seed: int) -> Reading:
        """Return what a small text encoder is trained to tell about prompts.

        Args:
            prompts: the distinct training prompts of all buckets.
            seed: decides prompts that are drawn.
        """

    @abstractmethod
    def scale(self, *, is_edit: bool) -> float:
        """Return the best possible score."""

    @abstractmethod
    def marks(
        self,
        samples: Sequence[Sample],
        images: "Tensor",
        sources: "Tensor | None",
        targets: "Tensor",
    ) -> Marks:
        """Return the marks of answers to rows of one size and one kind, ``score`` among them.

        Args:
            samples: [B] what was asked.
            images: [B, 3, H, W] the answers, float32 in [0, 1].
            sources: the pictures to edit, or None for text-to-image.
            targets: the exact answers (for text-to-image, one of many).
        """

    @abstractmethod
    def preserved(
        self, samples: Sequence[Sample], sources: "Tensor", targets: "Tensor"
    ) -> "Tensor":
        """Return which pixels edits must preserve, [B, H, W] bool."""

    def further(self, samples: Sequence[Sample], images: "Tensor") -> Marks:
        """Return marks beside the score, such as realism; none where nothing more is asked."""
        del samples, images
        return {}


WORLDS = {
    "digits": "danceflow.worlds.digits:Digits",
    "rows": "danceflow.worlds.rows:Rows",
    "scenes": "danceflow.worlds.scenes:Scenes",
}
"""World name to ``module:class``; a world is one file, one line here and a word in the params."""


def open_world(name: str) -> World:
    """Return a world by its name.

    Raises:
        ConfigError: there is none of that name; the message names the nearest.
    """
    if name not in WORLDS:
        raise ConfigError(unknown_name("world", name, WORLDS))
    module, _, attribute = WORLDS[name].partition(":")
    world: World = getattr(import_module(module), attribute)()
    return world

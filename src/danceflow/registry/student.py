"""The student in use: prompts and images in, images out."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from danceflow.errors import DanceflowError, DataError, UsageError
from danceflow.models.steps import steps_of
from danceflow.pictures import FIT, PAPER, Frame, fit_picture, plain, to_picture, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from danceflow.data.sizes import Size
    from danceflow.fields import Condition
    from danceflow.models.package import Package

_LOG = logging.getLogger(__name__)

SMALL_PIXELS = 64 * 64
"""A larger picture fills a processor alone: filling up its batch would only cost."""

TOGETHER = 4
"""Small pictures that are computed at once: nearly as fast as one, docs/howto/serve.md."""

_NUM_EMBEDDED = 32


class UnwantedError(DanceflowError):
    """Nobody waits for what is being computed any more."""


@dataclass(frozen=True)
class Row:
    """What one picture is made from.

    Attributes:
        prompt: what to show, or to change.
        source: the picture to change as the student sees it (``framed``); None: generate.
        seed: of its call.
        place: in its call; with the seed it decides the noise.
        size: height and width of the result in pixels.
        further: further pictures of the edit, of the size of ``source``.
    """

    prompt: str
    source: "Image | None"
    seed: int
    place: int
    size: "Size"
    further: "tuple[Image, ...]" = ()


class Student:
    """Makes and edits images with a loaded student.

    The result of a row depends on its seed and its place in the call, not on the rows beside it,
    and not in its last bit: sums are rounded in another order in batches of another size, so every
    batch has the same one and is filled up where rows are missing. Prompts and sources are encoded
    one by one. Several threads may use it.
    """

    def __init__(self, package: "Package", together: int | None = None) -> None:
        """Take a loaded student; its ``framing`` is how its training's pictures were framed.

        Args:
            package: the student.
            together: rows of a batch; None: ``TOGETHER`` where all its pictures are small, else 1.
                Another number rounds in another order.
        """
        self._package = package
        self._together = together
        sizes = tuple((width, height) for height, width in package.image_sizes)
        self._frame = Frame(sizes, self.framing["fit"], self.framing["paper"])

    @property
    def meta(self) -> Mapping[str, Any]:
        """How the student was made."""
        return self._package.meta

    def steps(self, *, is_edit: bool) -> int:
        """Return the solver steps that it was made for."""
        return steps_of(self.meta, is_edit=is_edit)

    @property
    def framing(self) -> Mapping[str, Any]:
        """How pictures are brought into their frame: ``fit`` and ``paper`` of ``Frame``."""
        # Older students were made without.
        found: Mapping[str, Any] = self.meta.get("framing", {"fit": FIT, "paper": PAPER})
        return found

    @property
    def image_sizes(self) -> "tuple[Size, ...]":
        """Height and width in pixels of the images it makes, the usual one first."""
        return self._package.image_sizes

    @property
    def max_sources(self) -> int:
        """How many pictures an edit may have; 0: the student does not edit."""
        return self._package.family.max_sources

    def framed(self, image: "Image", first: "Image | None" = None) -> "Image":
        """Return a picture as the student sees it, as its training's were; again, it is the same.

        It is upright, opaque RGB, of the size of nearest aspect that the student makes.

        Args:
            image: a picture of an edit.
            first: the edit's first one, framed, if this is a further one: it has the size, then.

        Raises:
            DataError: nothing of it would be left.
        """
        image = plain(image, self._frame.paper)
        size = self._frame.size_for(image) if first is None else first.size
        return fit_picture(image, size, self._frame)

    def generate(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float = 1.0,
        size: "Size | None" = None,
    ) -> "list[Image]":
        """Return one image per prompt.

        Args:
            prompts: what to show.
            seed: decides the noise.
            num_steps: solver steps; None: as many as it was trained for.
            guidance: classifier-free guidance scale; 1 is a single pass.
            size: height and width in pixels; None: the usual ones.

        Raises:
            UsageError: a prompt is empty, a number makes no sense, or it makes no images of that
                size.
        """
        return self.run(prompts, [None] * len(prompts), seed, num_steps, guidance, size)

    def edit(
        self,
        images: "Sequence[Image | Sequence[Image]]",
        prompts: Sequence[str],
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float = 1.0,
    ) -> "list[Image]":
        """Return every image changed as its prompt says.

        Args:
            images: what to change, of any mode; ``framed`` is what the student sees of it. Several
                for a prompt are an edit of several pictures, the first is the one to change.
            prompts: one instruction per image.
            seed: decides the noise.
            num_steps: solver steps; None: as many as it was trained for.
            guidance: classifier-free guidance scale; 1 is a single pass.

        Raises:
            UsageError: the numbers of images and prompts differ, a prompt is empty, the student
                takes fewer pictures, or a number makes no sense.
            DataError: an image cannot be framed.
        """
        if len(images) != len(prompts):
            raise UsageError(f"{len(images)} images and {len(prompts)} prompts do not pair up")
        return self.run(prompts, images, seed, num_steps, guidance)

    def run(
        self,
        prompts: Sequence[str],
        sources: "Sequence[Image | Sequence[Image] | None]",
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float = 1.0,
        size: "Size | None" = None,
    ) -> "list[Image]":
        """Return one image per row: generated where the source is None, else edited.

        Args and errors are those of ``generate`` and ``edit``.
        """
        usual = self.result_size(size)
        rows = []
        for place, (prompt, given) in enumerate(zip(prompts, sources, strict=True)):
            if not prompt.strip():
                raise UsageError(f"prompt {place} is empty")
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise UsageError(f"prompt {place} holds half a character") from None
            for note in self.notes(prompt, is_edit=given is not None):
                _LOG.warning("prompt %d %s", place, note)
            images = self._sources(place, given)
            source = images[0] if images else None
            found = usual if source is None else (source.height, source.width)
            rows.append(Row(prompt, source, seed, place, found, tuple(images[1:])))
        return self.make(rows, num_steps, guidance)

    def notes(self, prompt: str, *, is_edit: bool) -> list[str]:
        """Return what the model does not see of a prompt, in sentences without their subject."""
        from danceflow.models.frozen.reading import told

        with self._package.reading:
            unknown = self._package.family.unknown_words(prompt)
            cut = told(self._package.family.readings(prompt, edits=is_edit))
        found = []
        if unknown:
            found.append(f"has words that the model does not know: {', '.join(map(repr, unknown))}")
        if cut:
            found.append(f"is cut: {cut}")
        return found

    def embedded(self, prompts: Sequence[str]) -> "Tensor":
        """Return what the text encoders make of prompts, [N, D] float32: the mean over tokens."""
        import torch

        means = []
        with torch.no_grad():
            for start in range(0, len(prompts), _NUM_EMBEDDED):
                with self._package.reading:
                    made = self._package.family.condition(prompts[start : start + _NUM_EMBEDDED])
                tokens = made.tensors["prompt_embeds"].float()
                mask = made.tensors.get("prompt_mask")
                weights = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.float()
                total = (tokens * weights[..., None]).sum(1)
                means.append((total / weights.sum(1, keepdim=True)).cpu())
        return torch.cat(means)

    @cached_property
    def together(self) -> int:
        """How many rows are computed at once."""
        if self._together is not None:
            return self._together
        is_small = all(height * width <= SMALL_PIXELS for height, width in self.image_sizes)
        return TOGETHER if is_small else 1

    def make(
        self,
        rows: Sequence[Row],
        num_steps: int | None = None,
        guidance: float = 1.0,
        wanted: Callable[[], bool] = lambda: True,
    ) -> "list[Image]":
        """Return one picture per row; rows of several calls may stand beside each other.

        Args and errors are those of ``tensors``.
        """
        return list(map(to_picture, self.tensors(rows, num_steps, guidance, wanted)))

    def tensors(
        self,
        rows: Sequence[Row],
        num_steps: int | None = None,
        guidance: float = 1.0,
        wanted: Callable[[], bool] = lambda: True,
    ) -> "list[Tensor]":
        """Return what ``make`` rounds to 256 levels, [3, H, W] float32 in [0, 1] for each row.

        Args:
            rows: what to make.
            num_steps: solver steps; None: as many as it was trained for.
            guidance: classifier-free guidance scale; 1 is a single pass.
            wanted: asked before every evaluation of the network.

        Raises:
            UsageError: a number makes no sense.
            UnwantedError: ``wanted`` said no.
        """
        import torch

        _check_numbers(num_steps, guidance)
        inner = self._package.field

        def asked(z_BCHW: "Tensor", sigma_B: "Tensor", condition: "Condition", /) -> "Tensor":
            if not wanted():
                raise UnwantedError("nobody waits for these pictures any more")
            return inner(z_BCHW, sigma_B, condition)

        field = self._package.family.guided(asked, guidance)
        results: dict[int, Tensor] = {}
        with torch.no_grad():
            conditions = [self._condition(row) for row in rows]
            alike: dict[Any, list[int]] = {}
            for place, row in enumerate(rows):
                shapes = {name: t.shape for name, t in conditions[place].tensors.items()}
                steps = num_steps or self.steps(is_edit=row.source is not None)
                alike.setdefault((steps, row.size, *sorted(shapes.items())), []).append(place)
            for (steps, *_), places in alike.items():
                for start in range(0, len(places), self.together):
                    batch = places[start : start + self.together]
                    filled = batch + batch[:1] * (self.together - len(batch))
                    clean = self._sample(
                        field, [rows[i] for i in filled], [conditions[i] for i in filled], steps
                    )
                    results.update(zip(batch, clean, strict=False))
        return [results[place] for place in range(len(rows))]

    def _sample(
        self, field: Any, rows: Sequence[Row], conditions: "Sequence[Condition]", steps: int
    ) -> "Tensor":
        """Return the pictures of rows of one size, [B, 3, H, W] in [0, 1]."""
        from danceflow.fields import Condition, sample
        from danceflow.fields.seeds import normal, seed_for

        sized = self._package.family.sized(*rows[0].size)
        seeds = [seed_for(row.seed, "student", 0, row.place) for row in rows]
        noise = normal(sized.latent_shape, seeds).to(self._package.device)
        grid = sized.grid(steps).to(noise.device)
        return sized.decode(sample(field, noise, Condition.cat(conditions), grid))

    def _condition(self, row: Row) -> "Condition":
        """Return the condition of a row, a batch of one."""
        sized = self._package.family.sized(*row.size)
        pictures = () if row.source is None else (row.source, *row.further)
        pixels = [to_pixels(picture)[None].to(self._package.device) for picture in pictures]
        latents = [sized.encode(image) for image in pixels]
        with self._package.reading:
            return sized.condition([row.prompt], latents or None, pixels or None)

    def result_size(self, size: "Size | None") -> "Size":
        """Return the size of what is generated; raises ``UsageError`` if it is not made."""
        known = self.image_sizes
        if size is None:
            return known[0]
        if size not in known:
            from danceflow.data.sizes import shown

            raise UsageError(
                f"the student makes no images of {shown(size)} pixels, but of "
                f"{', '.join(map(shown, known))}"
            )
        return size

    def _sources(self, row: int, given: "Image | Sequence[Image] | None") -> "list[Image]":
        """Return the framed sources of a row, none where it has none."""
        if given is None:
            return []
        images = given if isinstance(given, Sequence) else (given,)
        if not images:
            raise UsageError(f"row {row}: has no picture to change")
        self.require_sources(len(images))
        try:
            first = self.framed(images[0])
            return [first, *(self.framed(image, first) for image in images[1:])]
        except DataError as error:
            raise DataError(f"image {row}: {error}") from error

    def require_sources(self, count: int) -> None:
        """Raise ``UsageError`` if the student takes fewer pictures for an edit than ``count``."""
        if count > max(1, self.max_sources):
            most = "one picture" if self.max_sources <= 1 else f"{self.max_sources} pictures"
            raise UsageError(f"{count} pictures are given, this student edits {most} at most")


def _check_numbers(num_steps: int | None, guidance: float) -> None:
    if num_steps is not None and num_steps < 1:
        raise UsageError(f"the number of steps should be at least 1, found {num_steps}")
    if not 0.0 <= guidance < float("inf"):
        raise UsageError(f"guidance should be a number of at least 0, found {guidance}")

"""The student in use: prompts and images in, images out."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from danceflow.errors import DataError, UsageError
from danceflow.pictures import FIT, PAPER, Frame, fit_picture, plain, to_picture, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from danceflow.data.sizes import Size
    from danceflow.models.family import ModelFamily
    from danceflow.models.package import Package

_LOG = logging.getLogger(__name__)
_BATCH_SIZE = 16


class Student:
    """Makes and edits images with a loaded student.

    The result of a sample depends on the seed and the sample's place in the call, not on the
    samples beside it.
    """

    def __init__(self, package: "Package") -> None:
        """Take a loaded student; its ``framing`` is how its training's pictures were framed."""
        self._package = package
        # Older students were made without.
        framing = package.meta.get("framing", {"fit": FIT, "paper": PAPER})
        sizes = tuple((width, height) for height, width in package.image_sizes)
        self._frame = Frame(sizes, framing["fit"], framing["paper"])

    @property
    def meta(self) -> Mapping[str, Any]:
        """How the student was made."""
        return self._package.meta

    @property
    def image_sizes(self) -> "tuple[Size, ...]":
        """Height and width in pixels of the images it makes, the usual one first."""
        return self._package.image_sizes

    def framed(self, image: "Image") -> "Image":
        """Return a picture as the student sees it, as its training's were; again, it is the same.

        It is upright, opaque RGB, of the size of nearest aspect that the student makes.

        Raises:
            DataError: nothing of it would be left.
        """
        image = plain(image, self._frame.paper)
        return fit_picture(image, self._frame.size_for(image), self._frame)

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
        images: "Sequence[Image]",
        prompts: Sequence[str],
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float = 1.0,
    ) -> "list[Image]":
        """Return every image changed as its prompt says.

        Args:
            images: what to change, of any mode; ``framed`` is what the student sees of it.
            prompts: one instruction per image.
            seed: decides the noise.
            num_steps: solver steps; None: as many as it was trained for.
            guidance: classifier-free guidance scale; 1 is a single pass.

        Raises:
            UsageError: the numbers of images and prompts differ, a prompt is empty, or a number
                makes no sense.
            DataError: an image cannot be framed.
        """
        if len(images) != len(prompts):
            raise UsageError(f"{len(images)} images and {len(prompts)} prompts do not pair up")
        return self.run(prompts, images, seed, num_steps, guidance)

    def run(
        self,
        prompts: Sequence[str],
        sources: "Sequence[Image | None]",
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float = 1.0,
        size: "Size | None" = None,
    ) -> "list[Image]":
        """Return one image per row: generated where the source is None, else edited.

        Args and errors are those of ``generate`` and ``edit``.
        """
        import torch

        from danceflow.data.sizes import by_size
        from danceflow.fields import sample
        from danceflow.fields.seeds import normal, seed_for
        from danceflow.models.frozen.reading import told

        steps = int(self.meta["num_steps"]) if num_steps is None else num_steps
        _check_request(prompts, steps, guidance)
        family = self._package.family
        for row, (prompt, image) in enumerate(zip(prompts, sources, strict=True)):
            if unknown := family.unknown_words(prompt):
                _LOG.warning(
                    "%r: the model does not know %s", prompt, ", ".join(map(repr, unknown))
                )
            if cut := told(family.readings(prompt, edits=image is not None)):
                _LOG.warning("prompt %d is cut: %s", row, cut)
        field = family.guided(self._package.field, guidance)
        usual = self._usual(size)
        framed = [self._source(row, image) for row, image in enumerate(sources)]
        sizes = [usual if image is None else (image.height, image.width) for image in framed]
        results: dict[int, Image] = {}
        with torch.no_grad():
            for found, places in by_size(sizes).items():
                sized = family.sized(*found)
                for rows in _batches(places):
                    latents, pixels = self._encode(sized, [framed[row] for row in rows])
                    condition = sized.condition([prompts[row] for row in rows], latents, pixels)
                    seeds = [seed_for(seed, "student", 0, row) for row in rows]
                    noise = normal(sized.latent_shape, seeds).to(self._package.device)
                    clean = sample(field, noise, condition, sized.grid(steps).to(noise.device))
                    results.update(zip(rows, map(to_picture, sized.decode(clean)), strict=True))
        return [results[row] for row in range(len(prompts))]

    def _usual(self, size: "Size | None") -> "Size":
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

    def _source(self, row: int, image: "Image | None") -> "Image | None":
        """Return the framed source of a row, None where it has none."""
        try:
            return None if image is None else self.framed(image)
        except DataError as error:
            raise DataError(f"image {row}: {error}") from error

    def _encode(
        self, family: "ModelFamily", sources: "Sequence[Image | None]"
    ) -> "tuple[Tensor | None, Tensor | None]":
        """Return the sources' latents and pixels; None if no row has one."""
        import torch

        from danceflow.fields import no_sources

        given = [row for row, image in enumerate(sources) if image is not None]
        if not given:
            return None, None
        device = self._package.device
        images = [to_pixels(image) for image in sources if image is not None]
        pixels = torch.zeros(len(sources), *images[0].shape, device=device)
        pixels[given] = torch.stack(images).to(device)
        latents = no_sources(len(sources), family.latent_shape, device)
        latents[given] = family.encode(pixels[given])
        return latents, pixels


def _check_request(prompts: Sequence[str], num_steps: int, guidance: float) -> None:
    for row, prompt in enumerate(prompts):
        if not prompt.strip():
            raise UsageError(f"prompt {row} is empty")
    if num_steps < 1:
        raise UsageError(f"the number of steps should be at least 1, found {num_steps}")
    if not 0.0 <= guidance < float("inf"):
        raise UsageError(f"guidance should be a number of at least 0, found {guidance}")


def _batches(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), _BATCH_SIZE):
        yield rows[start : start + _BATCH_SIZE]

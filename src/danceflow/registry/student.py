"""The student in use: prompts and images in, images out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from danceflow.errors import UsageError
from danceflow.registry.images import to_images, to_pixels

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from danceflow.fields import VelocityField
    from danceflow.models.family import ModelFamily

_log = logging.getLogger(__name__)
_BATCH_SIZE = 16


class StudentPackage(Protocol):
    """What ``danceflow.models.package.load_package`` returns."""

    @property
    def family(self) -> ModelFamily:
        """The frozen parts of the student's family."""

    @property
    def field(self) -> VelocityField:
        """The student."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """How it was made: ``image_size`` (pixels) and ``num_steps`` (of its rollouts) at least."""


class Student:
    """Makes and edits images with a loaded student.

    The result of a sample depends on the seed and the sample's place in the call, not on the
    samples beside it.
    """

    def __init__(self, package: StudentPackage) -> None:
        self._package = package

    @property
    def meta(self) -> Mapping[str, Any]:
        """How the student was made."""
        return self._package.meta

    def generate(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float = 1.0,
    ) -> list[Image]:
        """Return one image per prompt.

        Args:
            prompts: what to show.
            seed: decides the noise.
            num_steps: solver steps; None: as many as it was trained for.
            guidance: classifier-free guidance scale; 1 is a single pass.

        Raises:
            UsageError: a prompt is empty, or a number makes no sense.
        """
        return self.run(prompts, [None] * len(prompts), seed, num_steps, guidance)

    def edit(
        self,
        images: Sequence[Image],
        prompts: Sequence[str],
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float = 1.0,
    ) -> list[Image]:
        """Return every image changed as its prompt says.

        Args:
            images: what to change; other sizes are cropped to a square and resized.
            prompts: one instruction per image.
            seed: decides the noise.
            num_steps: solver steps; None: as many as it was trained for.
            guidance: classifier-free guidance scale; 1 is a single pass.

        Raises:
            UsageError: the numbers of images and prompts differ, a prompt is empty, or a number
                makes no sense.
        """
        if len(images) != len(prompts):
            raise UsageError(f"{len(images)} images and {len(prompts)} prompts do not pair up")
        return self.run(prompts, images, seed, num_steps, guidance)

    def run(
        self,
        prompts: Sequence[str],
        sources: Sequence[Image | None],
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float = 1.0,
    ) -> list[Image]:
        """Return one image per row: generated where the source is None, else edited.

        Args and errors are those of ``generate`` and ``edit``.
        """
        import torch

        from danceflow.fields import sample
        from danceflow.fields.seeds import normal, seed_for

        steps = int(self.meta["num_steps"]) if num_steps is None else num_steps
        _check_request(prompts, steps, guidance)
        family = self._package.family
        for prompt in prompts:
            if unknown := family.unknown_words(prompt):
                _log.warning(
                    "%r: the model does not know %s", prompt, ", ".join(map(repr, unknown))
                )
        field = family.guided(self._package.field, guidance)
        results: list[Image] = []
        with torch.no_grad():
            for rows in _batches(len(prompts)):
                latents, pixels = self._encode([sources[row] for row in rows])
                condition = family.condition([prompts[row] for row in rows], latents, pixels)
                seeds = [seed_for(seed, "student", 0, row) for row in rows]
                noise = normal(family.latent_shape, seeds).to(self._package.device)
                clean = sample(field, noise, condition, family.grid(steps).to(noise.device))
                results += to_images(family.decode(clean))
        return results

    def _encode(self, sources: Sequence[Image | None]) -> tuple[Tensor | None, Tensor | None]:
        """Return the sources' latents and pixels, zeros for a row without; None if no row has one.

        Zeros are what the family's conditions hold for a prompt without a source.
        """
        import torch

        given = [row for row, image in enumerate(sources) if image is not None]
        if not given:
            return None, None
        family, device = self._package.family, self._package.device
        size = int(self.meta["image_size"])
        images = [to_pixels(image, size) for image in sources if image is not None]
        pixels = torch.zeros(len(sources), *images[0].shape, device=device)
        pixels[given] = torch.stack(images).to(device)
        latents = torch.zeros(len(sources), *family.latent_shape, device=device)
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


def _batches(count: int) -> Iterator[range]:
    for start in range(0, count, _BATCH_SIZE):
        yield range(start, min(start + _BATCH_SIZE, count))

"""How the teachers answer an update: at a state, or over the rollout's step that begins there."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from danceflow.fields import SteppedField, VelocityField, substep_grid

if TYPE_CHECKING:
    from danceflow.models.family import ModelFamily
    from danceflow.params.sections import DistillParams


class Answers:
    """The substeps that teachers take in a training, for states of every size."""

    def __init__(
        self, config: "DistillParams", families: "Iterable[ModelFamily]", device: torch.device
    ) -> None:
        """Cut the rollout's steps.

        Args:
            config: says for which capabilities, how finely, and from which share of the training.
            families: one for every size of the states.
            device: where.
        """
        self.substeps_from = config.substeps_from
        self.substeps = {name: count for name, count in config.substeps.items() if count > 1}
        self.grids: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for family in families:
            coarse = family.grid(config.num_steps)
            self.grids[tuple(family.latent_shape)] = {
                name: substep_grid(coarse, family.grid(config.num_steps * count)).to(device)
                for name, count in self.substeps.items()
            }

    def stepped(self, progress: float) -> frozenset[str]:
        """Return the capabilities whose teachers take substeps at a share of the training."""
        return frozenset(self.substeps if progress >= self.substeps_from else ())

    def at(
        self, progress: float, shape: Iterable[int], teachers: Mapping[str, VelocityField]
    ) -> Mapping[str, VelocityField]:
        """Return every capability's field at a share of the training, for states of a shape.

        Args:
            progress: the share.
            shape: (C, H, W) of the states.
            teachers: what is asked at a state, by capability; its evaluations are counted there.
        """
        grids, stepped = self.grids[tuple(shape)], self.stepped(progress)
        return {
            name: SteppedField(field, grids[name], self.substeps[name])
            if name in stepped
            else field
            for name, field in teachers.items()
        }

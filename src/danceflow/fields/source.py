"""Where training states come from: the student's own rollout, or noised clean samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, Protocol

import torch
from torch import Tensor

from danceflow.fields.field import Condition, VelocityField
from danceflow.fields.query import draw_queries
from danceflow.fields.rollout import ODE, Dynamics, Ode, rollout
from danceflow.fields.seeds import derive_seeds, normal

LOGIT_NORMAL = "logit_normal"
"""The query that draws sigma itself, sigmoid of a standard normal, instead of a grid index."""

CleanKind = Literal["teacher", "data", "random_latent"]
Clean = Callable[[CleanKind], Tensor]


@dataclass(frozen=True)
class Queries:
    """The states to train on, one row per (sample, query), M = B * K rows, sample by sample.

    Attributes:
        z: [M, C, H, W] states, without gradient.
        sigma: [M] their noise levels.
        sigma_next: [M] the next noise level of the grid.
        index: [M] long, their rollout index 0..N-1.
        condition: M rows.
        num_queries: K.
        grid: [N+1] the sigma grid.
        dynamics: what moves a state to its successor; `Ode()` for noised states.
        z_next: [M, C, H, W] successors drawn by the rollout, when they were asked for.
        data_velocity: [M, C, H, W] eps - x, for noised states.
    """

    z: Tensor
    sigma: Tensor
    sigma_next: Tensor
    index: Tensor
    condition: Condition
    num_queries: int
    grid: Tensor
    dynamics: Dynamics = ODE
    z_next: Tensor | None = None
    data_velocity: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """B, the number of samples."""
        return len(self.sigma) // self.num_queries

    def split(self, max_rows: int) -> "Iterator[tuple[Queries, float]]":
        """Yield chunks of whole samples and each one's share of all samples.

        A chunk has at most max_rows rows, but at least one sample. An objective's loss is a mean
        over samples, so the share-weighted losses of the chunks sum to the loss of the whole, and
        going backward chunk by chunk keeps one chunk's graph alive at a time.
        """
        samples_per_chunk = max(1, max_rows // self.num_queries)
        for first in range(0, self.num_samples, samples_per_chunk):
            last = min(first + samples_per_chunk, self.num_samples)
            yield self._samples(first, last), (last - first) / self.num_samples

    def parts(self, sizes: "Sequence[int]") -> "list[Queries]":
        """Return consecutive runs of samples, of the given sizes.

        Raises:
            ValueError: the sizes do not sum to the number of samples.
        """
        if sum(sizes) != self.num_samples:
            raise ValueError(f"sizes {list(sizes)} do not sum to {self.num_samples} samples")
        ends = list(accumulate(sizes))
        return [self._samples(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def _samples(self, first: int, last: int) -> "Queries":
        """Return the rows of samples first to last - 1."""
        rows = slice(first * self.num_queries, last * self.num_queries)
        return replace(
            self,
            z=self.z[rows],
            sigma=self.sigma[rows],
            sigma_next=self.sigma_next[rows],
            index=self.index[rows],
            condition=self.condition.select(rows),
            z_next=None if self.z_next is None else self.z_next[rows],
            data_velocity=None if self.data_velocity is None else self.data_velocity[rows],
        )


@dataclass(frozen=True)
class Request:
    """What a state source may use to collect states.

    Attributes:
        student: the current student's field.
        condition: B rows.
        grid: [N+1] sigmas, on the device of the computation.
        shape: (C, H, W) of a state.
        seeds: B per-sample seeds, from which every random number here is derived.
        clean: gives the batch's clean states [B, C, H, W] of a kind, "teacher" (cached teacher
            samples) or "data"; called only by the sources that need it.
        progress: training progress 0..1, for a curriculum query.
    """

    student: VelocityField
    condition: Condition
    grid: Tensor
    shape: tuple[int, ...]
    seeds: list[int]
    clean: Clean
    progress: float = 0.0

    def draw(self, query: str, num_queries: int) -> Tensor:
        """Return rollout indices [B, K] long."""
        num_steps = len(self.grid) - 1
        return draw_queries(
            query, len(self.seeds), num_steps, num_queries, self.seeds, progress=self.progress
        )

    def noise(self) -> Tensor:
        """Return each sample's own noise [B, C, H, W], float32 on the grid's device."""
        return normal(self.shape, derive_seeds(self.seeds, "noise")).to(self.grid.device)


class StateSource(Protocol):
    """Collects the states a method trains on."""

    @property
    def dynamics(self) -> Dynamics:
        """What moves a state to its successor."""
        ...

    def collect(
        self, request: Request, query: str, num_queries: int, successors: bool = False
    ) -> Queries:
        """Return K states per sample and, when asked for, their successors."""
        ...


@dataclass(frozen=True)
class OnPolicy:
    """States the student visits itself; the query index is drawn first and bounds the rollout.

    Attributes:
        dynamics: `Ode()` or `Sde(eta)`.
    """

    dynamics: Dynamics = ODE

    def collect(
        self, request: Request, query: str, num_queries: int, successors: bool = False
    ) -> Queries:
        """Return the student's states at drawn indices.

        Successors (the states one step later on the same path) cost at most one evaluation more
        per sample.

        Raises:
            ValueError: an unknown query or too many queries (see `draw_queries`).
        """
        index = request.draw(query, num_queries)
        keep = torch.cat([index, index + 1], dim=1) if successors else index
        states = rollout(
            request.student,
            request.noise(),
            request.condition,
            request.grid,
            keep,
            dynamics=self.dynamics,
            sample_seeds=request.seeds,
        )
        z_next = states.z[:, num_queries:].flatten(0, 1) if successors else None
        index = states.index[:, :num_queries].flatten()
        return Queries(
            z=states.z[:, :num_queries].flatten(0, 1),
            sigma=request.grid[index],
            sigma_next=request.grid[index + 1],
            index=index,
            condition=request.condition.repeat(num_queries),
            num_queries=num_queries,
            grid=request.grid,
            dynamics=self.dynamics,
            z_next=z_next,
        )


@dataclass(frozen=True)
class ForwardNoised:
    """Clean states with noise added, z = (1 - sigma) * x + sigma * eps; no rollout.

    The K states of a sample share its noise, so they lie on one straight path.

    Attributes:
        clean: "teacher" for cached teacher samples, "data" for the data set's targets,
            "random_latent" for x ~ N(0, 1) (what DanceOPD's released code noises).
    """

    clean: CleanKind
    dynamics: Ode = ODE

    def collect(
        self, request: Request, query: str, num_queries: int, successors: bool = False
    ) -> Queries:
        """Return noised clean states at drawn indices, or at logit-normal sigmas.

        Raises:
            ValueError: successors are asked for (noised states have none), or a bad query.
        """
        if successors:
            raise ValueError("forward-noised states have no successors; use on-policy SDE states")
        grid, x, eps = request.grid, self._clean(request), request.noise()
        if query == LOGIT_NORMAL:
            draws = normal((num_queries,), derive_seeds(request.seeds, "sigma")).to(grid)
            sigma = draws.sigmoid()
            index = (grid[1:-1, None, None] >= sigma).sum(dim=0)
        else:
            index = request.draw(query, num_queries).to(grid.device)
            sigma = grid[index]
        sigma_wide = sigma.reshape(*sigma.shape, *[1] * len(request.shape))
        x, eps = x[:, None], eps[:, None]
        return Queries(
            z=((1.0 - sigma_wide) * x + sigma_wide * eps).flatten(0, 1),
            sigma=sigma.flatten(),
            sigma_next=grid[index + 1].flatten(),
            index=index.flatten(),
            condition=request.condition.repeat(num_queries),
            num_queries=num_queries,
            grid=grid,
            data_velocity=(eps - x).repeat_interleave(num_queries, dim=1).flatten(0, 1),
        )

    def _clean(self, request: Request) -> Tensor:
        """Return the clean states [B, C, H, W], float32 on the grid's device."""
        if self.clean == "random_latent":
            latents = normal(request.shape, derive_seeds(request.seeds, "random_latent"))
        else:
            latents = request.clean(self.clean)
        expected = (len(request.seeds), *request.shape)
        if tuple(latents.shape) != expected:
            raise ValueError(
                f"clean states of kind {self.clean!r} have shape {tuple(latents.shape)}, "
                f"expected {expected}"
            )
        return latents.to(request.grid)

"""Where training states come from: the student's own rollout, or noised clean samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, Protocol

import torch
from torch import Tensor

from danceflow.fields.field import Condition, VelocityField
from danceflow.fields.query import INDEPENDENT, draw_queries
from danceflow.fields.rollout import ODE, Dynamics, Ode, rollout
from danceflow.fields.seeds import derive_seeds, normal, uniform

LOGIT_NORMAL = "logit_normal"
"""The query that draws sigma itself, sigmoid of a standard normal, instead of a grid index."""

CleanKind = Literal["teacher", "data", "random_latent"]
Clean = Callable[[CleanKind], Tensor]


def samples_together(max_rows: int, num_queries: int) -> int:
    """Return the whole samples of K queries each that fit in max_rows rows, at least one."""
    return max(1, max_rows // num_queries)


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
        samples_per_chunk = samples_together(max_rows, self.num_queries)
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

    def rounds(self, num_rounds: int) -> "list[Queries]":
        """Return every sample's first K / num_rounds states, its next ones, and so on (copies).

        Raises:
            ValueError: num_rounds does not divide K.
        """
        if num_rounds == 1:
            return [self]
        if self.num_queries % num_rounds:
            raise ValueError(f"{self.num_queries} states do not make {num_rounds} equal rounds")
        rows = torch.arange(len(self.sigma)).reshape(self.num_samples, num_rounds, -1)
        return [
            replace(
                self._rows(rows[:, number].flatten().to(self.sigma.device)),
                num_queries=rows.shape[2],
            )
            for number in range(num_rounds)
        ]

    @staticmethod
    def cat(parts: "Sequence[Queries]") -> "Queries":
        """Return the samples of all parts in order; the parts have one K, grid and dynamics.

        Raises:
            ValueError: no parts, or parts of other kinds of states.
        """
        if len({(part.num_queries, part.dynamics) for part in parts}) != 1:
            raise ValueError("only states of one K and one dynamics can be joined")

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        def optional(name: str) -> Tensor | None:
            return None if getattr(parts[0], name) is None else joined(name)

        return replace(
            parts[0],
            z=joined("z"),
            sigma=joined("sigma"),
            sigma_next=joined("sigma_next"),
            index=joined("index"),
            condition=Condition.cat([part.condition for part in parts]),
            z_next=optional("z_next"),
            data_velocity=optional("data_velocity"),
        )

    def _samples(self, first: int, last: int) -> "Queries":
        """Return the rows of samples first to last - 1."""
        return self._rows(slice(first * self.num_queries, last * self.num_queries))

    def _rows(self, rows: Tensor | slice) -> "Queries":
        """Return the rows at a long index (a copy) or a slice (a view)."""
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
class Noised:
    """The samples of a batch whose states are noised clean states, whatever the others visit.

    Attributes:
        rows: [B] bool, which of the batch they are.
        levels: [L] sigmas from 1 on, of which the last is the lowest; a state's is drawn between.
        at_steps: [B] bool, those whose sigma is one that a step of the rollout begins at; None: no
            one's.
    """

    rows: Tensor
    levels: Tensor
    at_steps: Tensor | None = None


@dataclass(frozen=True)
class StateRequest:
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
        runs: sizes of the consecutive runs of samples that belong together; None: all do.
        coupling: how the queries of a run are coupled, a name of `fields.query.COUPLINGS`.
        num_rounds: how often every sample draws its K queries, each time anew.
        whole: where other processes collect other samples of the batch: the seeds of all of it,
            to which ``runs`` refers then, and the places of these samples in it.
        noised: the samples whose states are noised data in an on-policy batch; None: there is none.
    """

    student: VelocityField
    condition: Condition
    grid: Tensor
    shape: tuple[int, ...]
    seeds: list[int]
    clean: Clean
    progress: float = 0.0
    runs: Sequence[int] | None = None
    coupling: str = INDEPENDENT
    num_rounds: int = 1
    whole: tuple[Sequence[int], Sequence[int]] | None = None
    noised: "Noised | None" = None

    def draw(self, query: str, num_queries: int) -> Tensor:
        """Return rollout indices [B, num_rounds * K] long, round by round; rounds may repeat.

        They are drawn for the whole batch, whose samples may be coupled.
        """
        seeds, places = (self.seeds, None) if self.whole is None else self.whole
        rounds = [
            draw_queries(
                query,
                len(seeds),
                len(self.grid) - 1,
                num_queries,
                derive_seeds(seeds, "round", number) if number else seeds,
                progress=self.progress,
                coupling=self.coupling,
                runs=self.runs,
            )
            for number in range(self.num_rounds)
        ]
        drawn = torch.cat(rounds, dim=1)
        return drawn if places is None else drawn[list(places)]

    def noise(self) -> Tensor:
        """Return each sample's own noise [B, C, H, W], float32 on the grid's device."""
        return normal(self.shape, derive_seeds(self.seeds, "noise")).to(self.grid.device)


class StateSource(Protocol):
    """Collects the states a method trains on."""

    @property
    def dynamics(self) -> Dynamics:
        """What moves a state to its successor."""
        ...

    @property
    def clean_kind(self) -> CleanKind | None:
        """The kind of clean states it asks the request for; None: it needs none."""
        ...

    def collect(
        self, request: StateRequest, query: str, num_queries: int, successors: bool = False
    ) -> Queries:
        """Return K states per sample and, when asked for, their successors."""
        ...


@dataclass(frozen=True)
class OnPolicy:
    """States the student visits itself; the query index is drawn first and bounds the rollout.

    Attributes:
        dynamics: `Ode()` or `Sde(eta)`.
        warm_start: the rollout index w where the student takes over. Up to there a state is a
            noised teacher sample, z = (1 - sigma) * x + sigma * eps with the sample's own noise,
            which is what a rollout of the teacher passes through in distribution; w evaluations are
            saved. At 0 it is pure noise: the plain rollout.
    """

    dynamics: Dynamics = ODE
    warm_start: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a negative start."""
        if self.warm_start < 0:
            raise ValueError(f"warm_start is {self.warm_start}, but a rollout starts at 0 or later")

    @property
    def clean_kind(self) -> CleanKind | None:
        """Teacher samples for a warm start, else none."""
        return "teacher" if self.warm_start else None

    def collect(
        self, request: StateRequest, query: str, num_queries: int, successors: bool = False
    ) -> Queries:
        """Return the student's states at drawn indices.

        Successors (the states one step later on the same path) cost at most one evaluation more
        per sample.

        Raises:
            ValueError: an unknown query or too many queries (see `draw_queries`), or a warm start
                that is off the grid.
        """
        index = request.draw(query, num_queries)
        num_queries = index.shape[1]
        if request.noised is not None:  # what needs no rollout has none
            index = torch.where(request.noised.rows.to(index.device)[:, None], 0, index)
        keep = torch.cat([index, index + 1], dim=1) if successors else index
        z = self._states(request, keep)
        index = index.to(request.grid.device)
        states, sigma = z[:, :num_queries], request.grid[index]
        if request.noised is not None:
            states, sigma, index = _with_noised(request, request.noised, states, sigma, index)
        index = index.flatten()
        return Queries(
            z=states.flatten(0, 1),
            sigma=sigma.flatten(),
            sigma_next=request.grid[index + 1],
            index=index,
            condition=request.condition.repeat(num_queries),
            num_queries=num_queries,
            grid=request.grid,
            dynamics=self.dynamics,
            z_next=z[:, num_queries:].flatten(0, 1) if successors else None,
        )

    def _states(self, request: StateRequest, keep: Tensor) -> Tensor:
        """Return the states at the kept indices, [B, K, C, H, W]."""
        start, noise = self.warm_start, request.noise()
        if not start:
            return self._rolled(request, noise, request.grid, keep)
        levels = torch.cat([torch.full((len(keep), 1), start), keep], dim=1)
        before = noised(checked_clean(request, "teacher"), noise, request.grid[levels])
        later = (keep - start).clamp_min(0)
        rolled = self._rolled(request, before[:, 0], request.grid[start:], later)
        is_before = (keep < start).to(rolled.device)
        return torch.where(is_before[..., None, None, None], before[:, 1:], rolled)

    def _rolled(self, request: StateRequest, z: Tensor, grid: Tensor, keep: Tensor) -> Tensor:
        """Return the states at the kept indices of the student's rollout from z on a grid."""
        return rollout(
            request.student,
            z,
            request.condition,
            grid,
            keep,
            dynamics=self.dynamics,
            sample_seeds=request.seeds,
        ).z


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

    @property
    def clean_kind(self) -> CleanKind | None:
        """The kind of states that are noised."""
        return self.clean

    def collect(
        self, request: StateRequest, query: str, num_queries: int, successors: bool = False
    ) -> Queries:
        """Return noised clean states at drawn indices, or at logit-normal sigmas.

        Raises:
            ValueError: successors are asked for (noised states have none), or a bad query.
        """
        if successors:
            raise ValueError("forward-noised states have no successors; use on-policy SDE states")
        grid, x, eps = request.grid, checked_clean(request, self.clean), request.noise()
        if query == LOGIT_NORMAL:
            draws = normal((num_queries,), derive_seeds(request.seeds, "sigma")).to(grid)
            sigma = draws.sigmoid()
            index = (grid[1:-1, None, None] >= sigma).sum(dim=0)
        else:
            index = request.draw(query, num_queries).to(grid.device)
            sigma = grid[index]
        return Queries(
            z=noised(x, eps, sigma).flatten(0, 1),
            sigma=sigma.flatten(),
            sigma_next=grid[index + 1].flatten(),
            index=index.flatten(),
            condition=request.condition.repeat(num_queries),
            num_queries=num_queries,
            grid=grid,
            data_velocity=(eps - x).repeat_interleave(num_queries, dim=0),
        )


def _with_noised(
    request: StateRequest, those: Noised, z: Tensor, sigma: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return states, sigmas and rollout indices [B, K, ...] with the noised rows in their places.

    Their sigmas are uniform in the number of the level, interpolated between two levels; an index
    is that of the rollout's step which a sigma lies in. Those at steps have that step's own sigma,
    and the step is uniform.
    """
    rows, levels = those.rows.to(z.device), those.levels.to(z)
    seeds = [
        seed for seed, is_one in zip(request.seeds, those.rows.tolist(), strict=True) if is_one
    ]
    if not seeds:
        return z, sigma, index
    drawn = uniform(derive_seeds(seeds, "sigma"), (z.shape[1],)).to(z)
    place = drawn * (len(levels) - 1)
    below = place.long().clamp_max(len(levels) - 2)
    found = torch.lerp(levels[below], levels[below + 1], place - below)
    noise = normal(request.shape, derive_seeds(seeds, "noise")).to(z)
    clean = request.clean("data").to(z)
    steps = (request.grid[1:-1, None, None] >= found).sum(dim=0)
    if those.at_steps is not None:
        at_steps = those.at_steps.to(z.device)[rows][:, None]
        last = len(request.grid) - 2
        steps = torch.where(at_steps, (drawn * (last + 1)).long().clamp_max(last), steps)
        found = torch.where(at_steps, request.grid[steps], found)
    return (
        z.index_put((rows,), noised(clean, noise, found)),
        sigma.index_put((rows,), found),
        index.index_put((rows,), steps),
    )


def noised(clean: Tensor, noise: Tensor, sigma_BK: Tensor) -> Tensor:
    """Return z = (1 - sigma) * x + sigma * eps, [B, K, C, H, W], for K noise levels per sample."""
    sigma = sigma_BK.reshape(*sigma_BK.shape, *[1] * (clean.ndim - 1))
    return (1.0 - sigma) * clean[:, None] + sigma * noise[:, None]


def checked_clean(request: StateRequest, kind: CleanKind) -> Tensor:
    """Return the clean states [B, C, H, W] of a kind, float32 on the grid's device.

    Raises:
        ValueError: they have another shape than the request's states.
    """
    if kind == "random_latent":
        latents = normal(request.shape, derive_seeds(request.seeds, "random_latent"))
    else:
        latents = request.clean(kind)
    expected = (len(request.seeds), *request.shape)
    if tuple(latents.shape) != expected:
        raise ValueError(
            f"clean states of kind {kind!r} have shape {tuple(latents.shape)}, expected {expected}"
        )
    return latents.to(request.grid)

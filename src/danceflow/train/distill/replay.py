"""Replay: the states of one rollout are shared out among several updates.

The rollout is most of what an update costs. With R updates per rollout every rollout leaves R
rounds of states; the first is trained on at once, each later one an update later. So every update
trains on states of the R latest rollouts, every state is trained on once, and none is older than
R - 1 updates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from danceflow.fields import Condition, Dynamics, Queries
from danceflow.ops.group import ALONE, Group

_TENSORS = ("z", "sigma", "sigma_next", "index", "grid")


@dataclass(frozen=True)
class Visits:
    """What the student visits of one capability, in one size: the states of an update.

    Attributes:
        capability: its name.
        share: of the update's loss; of a capability whose samples several processes have, each has
            so much of its share as it has samples.
        queries: the states.
    """

    capability: str
    share: float
    queries: Queries


class Replay:
    """The rounds of recent rollouts that wait for their update."""

    def __init__(self, num_rounds: int, device: torch.device, dynamics: Dynamics) -> None:
        """Start with no state waiting.

        Args:
            num_rounds: R, the updates per rollout; at 1 nothing ever waits.
            device: of all states.
            dynamics: of all states.
        """
        self.num_rounds, self.device, self.dynamics = num_rounds, device, dynamics
        # Of the update after the next i ones: a list of parts for each rollout, the oldest first.
        self.waiting: list[list[list[Visits]]] = [[] for _ in range(num_rounds - 1)]

    def exchange(self, fresh: Sequence[Visits]) -> list[Visits]:
        """Return what this update trains on: waiting rounds and the first one of ``fresh``.

        Every rollout has the same weight, and the parts of one capability and size are joined. In
        the first R - 1 updates there are fewer rollouts, and fewer states.

        Args:
            fresh: the parts of this update's rollout, with R rounds each; their shares sum to 1.
        """
        rounds: list[list[Visits]] = [[] for _ in range(self.num_rounds)]
        for part in fresh:
            for number, queries in enumerate(part.queries.rounds(self.num_rounds)):
                rounds[number].append(Visits(part.capability, part.share, queries))
        self.waiting.append([])
        for number, parts in enumerate(rounds):
            self.waiting[number].append(parts)
        return _joined(self.waiting.pop(0))

    def state_dict(self, group: Group = ALONE) -> list[list[list[dict[str, Any]]]]:
        """Return what waits, on all processes, as plain data and tensors; only main gets it."""
        own = [[[_packed(part) for part in parts] for parts in due] for due in self.waiting]
        if group.size == 1:
            return own
        return [
            [_merged(parts) for parts in zip(*due, strict=True)]
            for due in zip(*group.gathered(own), strict=True)
        ]

    def load_state_dict(
        self, state: list[list[list[dict[str, Any]]]], group: Group = ALONE
    ) -> None:
        """Go on where ``state`` was taken, with this process's share of it."""
        self.waiting = [[self._shared(parts, group) for parts in due] for due in state]

    def _shared(self, parts: Sequence[dict[str, Any]], group: Group) -> list[Visits]:
        """Return this process's share of the samples of one rollout."""
        visits = [self._unpacked(part) for part in parts]
        mine, found, start = group.share(sum(v.queries.num_samples for v in visits)), [], 0
        for visit in visits:
            count = visit.queries.num_samples
            first, last = (min(max(end - start, 0), count) for end in (mine.start, mine.stop))
            start += count
            if last > first:
                own = visit.queries.parts([first, last - first, count - last])[1]
                share = visit.share * ((last - first) / count)
                found.append(Visits(visit.capability, share, own))
        return found

    def _unpacked(self, packed: dict[str, Any]) -> Visits:
        queries = Queries(
            **{name: packed[name].to(self.device) for name in _TENSORS},
            condition=Condition(packed["condition"]).to(self.device),
            num_queries=packed["num_queries"],
            dynamics=self.dynamics,
        )
        return Visits(packed["capability"], packed["share"], queries)


def _merged(by_rank: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one part per capability and size of states, the samples of all processes in order."""
    found: dict[tuple[str, torch.Size], list[dict[str, Any]]] = {}
    for part in (part for parts in by_rank for part in parts):
        found.setdefault((part["capability"], part["z"].shape[1:]), []).append(part)
    return [
        {
            **parts[0],
            "share": sum(part["share"] for part in parts),
            "condition": Condition.cat([Condition(part["condition"]) for part in parts]).tensors,
            **{
                name: torch.cat([part[name] for part in parts])
                for name in _TENSORS
                if name != "grid"
            },
        }
        for parts in found.values()
    ]


def _joined(rollouts: Sequence[Sequence[Visits]]) -> list[Visits]:
    """Return one part per capability and size of states.

    Its states have one weight, as every rollout has as many samples of a capability. A process's
    share of them may have more of one rollout than of another: these are parts of their own.
    """
    found: dict[tuple[str, torch.Size, int], list[Visits]] = {}
    for part in (part for parts in rollouts for part in parts):
        key = (part.capability, part.queries.z.shape[1:], part.queries.num_samples)
        found.setdefault(key, []).append(part)
    return [
        Visits(
            name,
            sum(part.share for part in parts) / len(rollouts),
            parts[0].queries if len(parts) == 1 else Queries.cat([p.queries for p in parts]),
        )
        for (name, _, _), parts in found.items()
    ]


def _packed(part: Visits) -> dict[str, Any]:
    queries = part.queries
    return {
        "capability": part.capability,
        "share": part.share,
        "num_queries": queries.num_queries,
        "condition": {name: _own(tensor) for name, tensor in queries.condition.tensors.items()},
        **{name: _own(getattr(queries, name)) for name in _TENSORS},
    }


def _own(tensor: Tensor) -> Tensor:
    """Return a copy with memory of its own: a saved view would save what it is a view of."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)

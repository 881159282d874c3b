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

_TENSORS = ("z", "sigma", "sigma_next", "index", "grid")


@dataclass(frozen=True)
class Visits:
    """What the student visits of one capability, in one size: the states of an update.

    Attributes:
        capability: its name.
        share: of the update's loss.
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

    def state_dict(self) -> list[list[list[dict[str, Any]]]]:
        """Return what waits, as plain data and tensors."""
        return [[[_packed(part) for part in parts] for parts in due] for due in self.waiting]

    def load_state_dict(self, state: list[list[list[dict[str, Any]]]]) -> None:
        """Go on where ``state`` was taken."""
        self.waiting = [
            [[self._unpacked(part) for part in parts] for parts in due] for due in state
        ]

    def _unpacked(self, packed: dict[str, Any]) -> Visits:
        queries = Queries(
            **{name: packed[name].to(self.device) for name in _TENSORS},
            condition=Condition(packed["condition"]).to(self.device),
            num_queries=packed["num_queries"],
            dynamics=self.dynamics,
        )
        return Visits(packed["capability"], packed["share"], queries)


def _joined(rollouts: Sequence[Sequence[Visits]]) -> list[Visits]:
    """Return one part per capability and size of states.

    Its states have one weight, as every rollout has as many samples of a capability.
    """
    found: dict[tuple[str, torch.Size], list[Visits]] = {}
    for part in (part for parts in rollouts for part in parts):
        found.setdefault((part.capability, part.queries.z.shape[1:]), []).append(part)
    return [
        Visits(
            name,
            sum(part.share for part in parts) / len(rollouts),
            parts[0].queries if len(parts) == 1 else Queries.cat([p.queries for p in parts]),
        )
        for (name, _), parts in found.items()
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

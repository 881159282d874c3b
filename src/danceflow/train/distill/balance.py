"""Loss normalisation: no capability is learned faster only because its velocities are larger."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

_TINY = 1e-12


class LossBalance:
    """Weights that bring every capability's loss to one size.

    The weight of capability m is g / l_m with l_m the running mean of its row losses and g the
    geometric mean of all l: a capability whose loss is twice as large counts half as much, and the
    product of all weights is 1. Until every capability was seen all weights are 1.
    """

    def __init__(self, capabilities: Sequence[str], decay: float | None) -> None:
        """Start without any loss.

        Args:
            capabilities: the names of all that are trained.
            decay: of the running means, l <- decay * l + (1 - decay) * loss, which start at the
                first loss; ``None``: every weight stays 1.
        """
        self.decay = decay
        self.capabilities = tuple(capabilities)
        self.means: dict[str, float] = {}
        self._update: dict[str, list[Tensor]] = {}

    def weight(self, capability: str) -> float:
        """Return the capability's weight, the same until :meth:`close_update`."""
        if self.decay is None or len(self.means) < len(self.capabilities):
            return 1.0
        logs = {name: math.log(max(mean, _TINY)) for name, mean in self.means.items()}
        return math.exp(sum(logs.values()) / len(logs) - logs[capability])

    def add(self, capability: str, rows_M: Tensor) -> None:
        """Count row losses of the present update."""
        if self.decay is not None:
            self._update.setdefault(capability, []).append(rows_M.detach().double().cpu())

    def sums(self) -> dict[str, tuple[float, float]]:
        """Return sum and number of the losses of the present update, by capability."""
        return {
            name: (sum(float(part.sum()) for part in rows), sum(len(part) for part in rows))
            for name, rows in self._update.items()
        }

    def close_update(self, sums: Mapping[str, tuple[float, float]]) -> None:
        """Move the running means towards the losses of an update.

        Args:
            sums: what ``sums`` has returned, added up over all processes.
        """
        for name, (total, count) in sums.items():
            loss = total / count
            old = self.means.get(name, loss)
            self.means[name] = (self.decay or 0.0) * old + (1 - (self.decay or 0.0)) * loss
        self._update.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the running means."""
        return dict(self.means)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self.means = dict(state)

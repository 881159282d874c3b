"""What a training costs, counted in field evaluations: one network, one state, one forward pass.

A forward and backward pass of the student counts as three, since the gradient by weights and the
gradient by states each take about as much as the forward pass. Looking at the student meanwhile
(validation scores, image grids) is not counted: it does not train.
"""

from collections.abc import Mapping, Sequence

from danceflow.errors import TrainingError
from danceflow.fields import CountingField, VelocityField

FORWARD_AND_BACKWARD = 3
MAX_ROWS = 256
"""States of one backward pass at most; what is more goes backward piece by piece."""
PARTS = ("rollout", "teachers", "training", "average")


class Ledger:
    """Counts what is spent, and says when a budget allows no further update."""

    def __init__(self, budget: int | None) -> None:
        """Start at zero.

        Args:
            budget: field evaluations in all; ``None``: as many as the updates need.
        """
        self.budget = budget
        self._before = dict.fromkeys(PARTS, 0)
        self._counted: list[tuple[str, int, CountingField]] = []
        self._dearest = 0
        self._last_total = 0
        self._at_close = dict(self._before)

    def count(self, part: str, field: VelocityField, cost: int = 1) -> CountingField:
        """Return the field, with its evaluations counted.

        Args:
            part: one of ``PARTS``.
            field: what is evaluated.
            cost: field evaluations per state.
        """
        counting = CountingField(field)
        self._counted.append((part, cost, counting))
        return counting

    @property
    def spent(self) -> dict[str, int]:
        """The field evaluations so far, by part."""
        spent = dict(self._before)
        for part, cost, counting in self._counted:
            spent[part] += cost * counting.num_evaluations
        return spent

    @property
    def total(self) -> int:
        """The field evaluations so far."""
        return sum(self.spent.values())

    @property
    def share(self) -> float:
        """The part of the budget that is spent; 0 without a budget."""
        return 0.0 if self.budget is None else self.total / self.budget

    @property
    def exhausted(self) -> bool:
        """Whether one more update, as dear as the dearest so far, would exceed the budget."""
        return self.budget is not None and self.total + self._dearest > self.budget

    def of_update(self) -> list[int]:
        """Return what the present update has cost so far, by part, in the order of ``PARTS``."""
        spent = self.spent
        return [spent[part] - self._at_close[part] for part in PARTS]

    def add_others(self, counts: Sequence[int]) -> None:
        """Count what other processes have spent on the present update, by part."""
        for part, count in zip(PARTS, counts, strict=True):
            self._before[part] += count

    def close_update(self) -> None:
        """Take note of what the update that just ended has cost.

        Raises:
            TrainingError: if the budget is too small for a single update.
        """
        total, self._at_close = self.total, self.spent
        self._dearest = max(self._dearest, total - self._last_total)
        self._last_total = total
        if self.budget is not None and self._dearest > self.budget:
            raise TrainingError(
                f"distill.max_field_evaluations: {self.budget} do not suffice for one update, "
                f"which takes {self._dearest}"
            )

    def state_dict(self) -> dict[str, int]:
        """Return what was counted so far."""
        return {**self.spent, "dearest": self._dearest}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where ``state`` was taken; nothing may have been evaluated yet."""
        self._before = {part: int(state[part]) for part in PARTS}
        self._dearest = int(state["dearest"])
        self._last_total, self._at_close = self.total, self.spent

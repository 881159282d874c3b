"""The router: which capabilities an update trains."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal, get_args

from danceflow.capability import Capability
from danceflow.fields import lookup, seed_for, uniform

PerUpdate = Literal["one", "balanced", "all"]
PER_UPDATE: Mapping[str, PerUpdate] = {name: name for name in get_args(PerUpdate)}
GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


class Router:
    """Which capabilities an update trains, as a pure function of (seed, step).

    The route is drawn before any data, so data and teacher never mix. It holds no state: every
    process computes the same route without talking, and a resumed run goes on where it stopped.
    """

    def __init__(
        self, capabilities: Sequence[Capability], seed: int, per_update: str = "one"
    ) -> None:
        """Keep the capabilities in their given order.

        Args:
            capabilities: what there is to choose from.
            seed: the run's seed.
            per_update: "one" draws a capability by weight for every update; "balanced" does so
                too, but evenly: the points of successive updates are a golden ratio apart instead
                of independent, so that every stretch of n updates holds each capability n * share
                times, give or take a few and not sqrt(n); "all" trains every capability in every
                update, each with its `share` of the loss.

        Raises:
            ValueError: no capabilities, a name that occurs twice, or an unknown per_update.
        """
        if not capabilities:
            raise ValueError("a router needs at least one capability")
        twice = [name for name, count in Counter(c.name for c in capabilities).items() if count > 1]
        if twice:
            raise ValueError(f"capability {twice[0]!r} occurs twice")
        self.capabilities = tuple(capabilities)
        self.seed = seed
        self.per_update = lookup(PER_UPDATE, per_update, "per_update")
        total = sum(capability.weight for capability in capabilities)
        self._shares = [capability.weight / total for capability in capabilities]

    def route(self, step: int, index: int = 0) -> tuple[tuple[Capability, float], ...]:
        """Return the (capability, share of the loss) pairs of one update; the shares sum to 1.

        Args:
            step: the update, from 0.
            index: the micro-step within it, when gradients are accumulated.
        """
        if self.per_update == "all":
            return tuple(zip(self.capabilities, self._shares, strict=True))
        if self.per_update == "balanced":
            first = uniform([seed_for(self.seed, "route", 0, index)]).item()
            point = (first + step * GOLDEN_RATIO) % 1.0
        else:
            point = uniform([seed_for(self.seed, "route", step, index)]).item()
        # Without the last bound, which may round to below 1: no point may fall past it.
        chosen = sum(point >= bound for bound in accumulate(self._shares[:-1]))
        return ((self.capabilities[chosen], 1.0),)

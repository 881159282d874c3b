"""The rows of an update are a function of seed and step, whether they were read ahead or not."""

import pytest
import torch
from tiny_project import small_params

from danceflow.capability import asked
from danceflow.data.cached_rows import ConditionCache
from danceflow.method import method_of
from danceflow.paths import Paths
from danceflow.train.distill.router import Router
from danceflow.train.distill.rows import Drawn, UpdateRows

CAPABILITIES = ("t2i", "local_edit")


def rows_of(made: Paths, **changes) -> UpdateRows:
    params = small_params(CAPABILITIES, **{f"distill__{k}": v for k, v in changes.items()})
    config, capabilities = params.distill, asked(params).capabilities
    router = Router(capabilities, config.seed, config.capabilities_per_update)
    caches = {name: ConditionCache(made.cache(name)) for name in params.capabilities}
    return UpdateRows(config, method_of(config), router, caches, "cpu")


def equal(one: list[Drawn], other: list[Drawn]) -> bool:
    return len(one) == len(other) and all(
        (a.capability, a.share, a.size) == (b.capability, b.share, b.size)
        and torch.equal(a.rows, b.rows)
        and (a.clean is b.clean is None or torch.equal(a.clean, b.clean))
        and all(torch.equal(t, b.condition.tensors[n]) for n, t in a.condition.tensors.items())
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    "changes",
    [{"capabilities_per_update": "all"}, {"method": "offpolicy"}, {"method": "joint"}],
    ids=["all", "teacher samples", "data"],
)
def test_what_is_read_ahead_is_what_is_drawn(made: Paths, changes) -> None:
    found, other = rows_of(made, **changes), rows_of(made, **changes)
    for step in (0, 1, 2, 5, 3, 4):
        assert equal(found.take(step), other.read(step))
    assert found.waited > 0
    assert not equal(found.read(1), found.read(2))


def test_clean_latents_are_read_where_the_method_needs_them(made: Paths) -> None:
    (plain,) = rows_of(made).read(0)
    assert plain.clean is None
    (noised,) = rows_of(made, method="offpolicy").read(0)
    assert noised.clean is not None
    assert noised.clean.shape == noised.condition.tensors["source"].shape
    for drawn in (plain, noised):
        assert drawn.condition.num_samples == len(drawn.rows) == 4

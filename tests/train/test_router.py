import math
import subprocess
import sys

import pytest

from danceflow.capability import Capability, TeacherSpec
from danceflow.train.router import Router

TEACHER = TeacherSpec("base")


def capabilities(*weights):
    return [
        Capability(name, name, TEACHER, weight)
        for name, weight in zip(("t2i", "local", "global"), weights, strict=True)
    ]


def names(router, steps):
    return [router.route(step)[0][0].name for step in steps]


def test_the_route_is_a_pure_function_of_seed_and_step():
    router = Router(capabilities(1, 1, 1), seed=3)
    forwards = names(router, range(200))
    assert names(router, reversed(range(200))) == forwards[::-1]
    assert names(Router(capabilities(1, 1, 1), seed=3), range(120, 200)) == forwards[120:]
    assert names(Router(capabilities(1, 1, 1), seed=4), range(200)) != forwards


def test_another_process_computes_the_same_route_without_a_broadcast():
    program = (
        "from danceflow.capability import Capability, TeacherSpec\n"
        "from danceflow.train.router import Router\n"
        "parts = [Capability(n, n, TeacherSpec('base')) for n in ('t2i', 'local', 'global')]\n"
        "router = Router(parts, seed=3)\n"
        "print(*[router.route(step)[0][0].name for step in range(50)])\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert other.stdout.split() == names(Router(capabilities(1, 1, 1), seed=3), range(50))


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 3, 2), (0.1, 0.1, 9.8)])
def test_weights_are_respected(weights):
    num_steps = 6000
    drawn = names(Router(capabilities(*weights), seed=0), range(num_steps))
    for name, weight in zip(("t2i", "local", "global"), weights, strict=True):
        share = weight / sum(weights)
        deviation = math.sqrt(share * (1.0 - share) / num_steps)
        assert abs(drawn.count(name) / num_steps - share) < 4.0 * deviation


def test_steps_and_micro_steps_are_independent_draws():
    router = Router(capabilities(1, 1, 1), seed=0)
    pairs = [
        (router.route(step, 0)[0][0].name, router.route(step, 1)[0][0].name) for step in range(3000)
    ]
    same = sum(first == second for first, second in pairs) / len(pairs)
    assert abs(same - 1.0 / 3.0) < 4.0 * math.sqrt(2.0 / 9.0 / len(pairs))


def test_all_per_update_gives_every_capability_its_share():
    router = Router(capabilities(5, 3, 2), seed=0, per_update="all")
    route = router.route(17)
    assert [capability.name for capability, _ in route] == ["t2i", "local", "global"]
    assert [share for _, share in route] == pytest.approx([0.5, 0.3, 0.2])


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1, 1.5), (0.1, 0.1, 9.8)])
def test_balanced_routes_keep_every_share_over_every_stretch(weights):
    """A count is within 3 of its share over every stretch; independent draws stray by sqrt(n)."""
    router = Router(capabilities(*weights), seed=5, per_update="balanced")
    route = names(router, range(3000))
    assert names(router, range(1000, 1100)) == route[1000:1100]
    drawn = names(Router(capabilities(*weights), seed=5), range(3000))
    strays = {"balanced": 0.0, "one": 0.0}
    for name, weight in zip(("t2i", "local", "global"), weights, strict=True):
        share = weight / sum(weights)
        for kind, found in (("balanced", route), ("one", drawn)):
            for first in range(0, 2000, 97):
                for length in (10, 100, 999):
                    count = found[first : first + length].count(name)
                    strays[kind] = max(strays[kind], abs(count - length * share))
    assert strays["balanced"] < 3.0
    assert strays["one"] > 3.0
    assert (
        names(Router(capabilities(*weights), seed=6, per_update="balanced"), range(50))
        != (route[:50])
    )


def test_one_capability_is_always_chosen_with_the_whole_loss():
    only = Capability("t2i", "t2i", TEACHER)
    assert Router([only], seed=0).route(5) == ((only, 1.0),)


def test_bad_capabilities_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        Router([], seed=0)
    with pytest.raises(ValueError, match="'t2i' occurs twice"):
        Router([Capability("t2i", "a", TEACHER), Capability("t2i", "b", TEACHER)], seed=0)
    with pytest.raises(ValueError, match="unknown per_update 'every'"):
        Router(capabilities(1, 1, 1), seed=0, per_update="every")
    with pytest.raises(ValueError, match="'t2i': weight 0"):
        Capability("t2i", "a", TEACHER, weight=0)

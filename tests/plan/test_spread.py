"""What several processes change about a plan."""

from dataclasses import replace

import pytest

from danceflow.plan.architecture import published_architecture
from danceflow.plan.cost import Plan, plan_training
from danceflow.plan.devices import Device, device_of
from danceflow.plan.show import REFERENCE, as_text
from danceflow.plan.spread import (
    BETWEEN_BYTES_PER_SECOND,
    INSIDE_BYTES_PER_SECOND,
    busiest_share,
    exchange_seconds,
)

H100 = device_of("h100")


def plan(model: str, num_processes: int, device: Device = H100, **changes) -> Plan:
    training = replace(REFERENCE, num_processes=num_processes, **changes)
    return plan_training(training, published_architecture(model, edits=True), device)


def items(found: Plan) -> dict[str, float]:
    return {item.name: item.num_bytes for item in found.memory}


def test_the_busiest_process_decides() -> None:
    shares = [busiest_share(replace(REFERENCE, num_processes=n)) for n in (1, 2, 3, 4, 8)]
    assert shares == [1.0, 0.5, 0.5, 0.25, 0.25]


def test_a_sum_goes_round_in_machines_and_then_between_them() -> None:
    def seconds(count: int) -> float:
        return exchange_seconds(replace(REFERENCE, num_processes=count), 1e9)

    inside, between = 2e9 / INSIDE_BYTES_PER_SECOND, 2e9 / BETWEEN_BYTES_PER_SECOND
    assert seconds(1) == 0
    assert seconds(2) == pytest.approx(inside / 2)
    assert seconds(8) == pytest.approx(inside * 7 / 8)
    assert seconds(64) == pytest.approx(inside * 7 / 8 + between * 7 / 8)


def test_hours_shrink_with_the_processes_and_adapters_stay_whole() -> None:
    never_waits = replace(H100, call_seconds=0.0)
    one, eight = (plan("z-image-omni", n, never_waits, batch_size=32) for n in (1, 8))
    exchange = eight.num_updates * eight.exchange_seconds / 3600
    assert eight.hours == pytest.approx(one.hours / 8 + exchange)
    assert eight.cache_hours == pytest.approx(one.cache_hours / 8)
    slower = plan("z-image-omni", 8, batch_size=32)  # calls are shared out by none
    calls = sum(slower.update_seconds.values()) - sum(eight.update_seconds.values())
    assert calls > 0
    assert slower.call_seconds == pytest.approx(calls)
    added = items(eight).keys() - items(one).keys()
    assert added == {"gradients in one piece, for the all-reduce"}
    (name,) = (name for name in items(one) if name.startswith("activations"))
    assert items(eight)[name] == pytest.approx(items(one)[name] / 8)
    assert "on 8 devices" in as_text(eight)
    assert "devices;" not in as_text(one)


def test_a_large_full_student_lies_in_shards_and_a_smaller_one_whole() -> None:
    one, eight = plan("z-image-omni", 1, rank=None), plan("z-image-omni", 8, rank=None)
    for name in ("student", "gradients", "states of adamw", "average of the student (EMA)"):
        assert items(eight)[f"{name}, a shard"] == pytest.approx(items(one)[name] / 8)
    small = items(plan("sd3.5-medium", 8, rank=None))
    assert "student" in small
    assert not any("shard" in name for name in small)

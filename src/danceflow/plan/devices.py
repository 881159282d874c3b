"""What named machines compute: vendors' peaks with an estimated share, or what was measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from danceflow.errors import UsageError, unknown_name

DEFAULT_GPU = "h100"
CPU = "cpu-2-core"


@dataclass(frozen=True)
class Device:
    """A machine.

    Attributes:
        name: in ``devices.json``.
        label: in words.
        half_flops: peak floating-point operations per second, bfloat16 or float16, dense.
        float_flops: the same in float32, without tensor cores.
        memory_gb: its memory in 10^9 bytes, if it is known.
        utilisation: share of the peaks that arithmetic reaches; an estimate unless ``is_measured``.
        call_seconds: what a pass takes beside its arithmetic, for every module that it calls.
        quantised_call_seconds: the same beside that, for a linear module of fewer bits.
        is_measured: whether the speed was measured here.
        source: where the figures come from.
    """

    name: str
    label: str
    half_flops: float
    float_flops: float
    memory_gb: float | None
    utilisation: float
    call_seconds: float
    quantised_call_seconds: float
    is_measured: bool
    source: str

    def speed(self, num_bytes: int) -> float:
        """Return floating-point operations per second for numbers of so many bytes."""
        return self.utilisation * (self.float_flops if num_bytes == 4 else self.half_flops)

    def seconds(self, flops: float, adapter_flops: float, num_bytes: int) -> float:
        """Return how long arithmetic takes.

        Args:
            flops: floating-point operations.
            adapter_flops: those of them that are an adapter's, which are float32.
            num_bytes: of the network's numbers.
        """
        return (flops - adapter_flops) / self.speed(num_bytes) + adapter_flops / self.speed(4)


@cache
def table() -> Mapping[str, Any]:
    """Return the content of ``devices.json``."""
    text = resources.files("danceflow.plan").joinpath("devices.json").read_text(encoding="utf-8")
    content: Mapping[str, Any] = json.loads(text)
    return content


def device_of(name: str, utilisation: float | None = None) -> Device:
    """Return a named machine.

    Args:
        name: one of ``devices.json``.
        utilisation: replaces the table's.

    Raises:
        UsageError: unknown name; the message names the nearest.
    """
    devices = table()
    if name not in devices:
        raise UsageError(unknown_name("GPU", name, devices))
    entry = devices[name]
    return Device(
        name=name,
        label=entry["label"],
        half_flops=1e12 * entry["bf16_tflops"],
        float_flops=1e12 * entry["fp32_tflops"],
        memory_gb=entry["memory_gb"],
        utilisation=entry["utilisation"] if utilisation is None else utilisation,
        call_seconds=1e-6 * entry["call_us"],
        quantised_call_seconds=1e-6 * entry["quantised_call_us"],
        is_measured=entry["measured"] and utilisation is None,
        source=entry["source"],
    )

"""What several processes change about a cost: each has a device of its own and a share of all."""

from danceflow.plan.training import Workload
from danceflow.train.distill.sharding import SHARDED_FROM

PER_MACHINE = 8
"""GPUs of one machine, an assumption."""
INSIDE_BYTES_PER_SECOND, BETWEEN_BYTES_PER_SECOND = 200e9, 25e9
"""What each GPU exchanges with others of its machine, and each machine with others; assumptions."""


def busiest_share(training: Workload) -> float:
    """Return the part of an update's samples that the process with most of them has."""
    samples = max(1, training.batch_size // training.method.updates_per_rollout)
    return -(-samples // training.num_processes) / samples


def is_sharded(training: Workload, parameters: int) -> bool:
    """Return whether the student lies in shards."""
    many = training.num_processes > 1
    return many and training.rank is None and parameters >= SHARDED_FROM


def exchange_seconds(training: Workload, num_bytes: float) -> float:
    """Return how long processes take to sum tensors, in a ring: inside machines, then between them.

    Args:
        training: says how many processes there are.
        num_bytes: of the tensors, on each process.
    """
    inside = min(training.num_processes, PER_MACHINE)
    machines = -(-training.num_processes // PER_MACHINE)
    return (
        2
        * num_bytes
        * (
            (inside - 1) / inside / INSIDE_BYTES_PER_SECOND
            + (machines - 1) / machines / BETWEEN_BYTES_PER_SECOND
        )
    )

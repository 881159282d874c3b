"""An update of the embedded default against its own arithmetic.

    python benchmarks/step.py CHECKOUT [--updates 12] [--out FILE]

CHECKOUT holds the caches and the teachers of a finished `make run`; nothing in it is changed. Every
call of a network within an update is noted with its tensors. Then the same calls are made again and
nothing else: forward passes without gradient, and for the student's training a backward pass, too.
That is the arithmetic. Its share of the update's seconds says what drawing rows, rollouts, losses,
clipping, the optimiser and the average take beside it. Updates and arithmetic take turns, so that a
machine that slows down slows both. Run it with nothing else on the machine.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from finished_checkout import prepared, seconds_of, trainer_of
from random_model import timed_update
from torch import Tensor, nn

from danceflow.ops.files import write_json
from danceflow.train.distill.trainer import Trainer

OUT = Path(__file__).parents[1] / "docs" / "results" / "step.json"
WARM_UP = 2


@dataclass(frozen=True)
class Call:
    """A call of a network, and whether a backward pass follows."""

    network: nn.Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    is_trained: bool

    def again(self) -> None:
        """Make it once more."""
        if not self.is_trained:
            with torch.no_grad():
                self.network(*self.arguments, **self.options)
            return
        found = self.network(*self.arguments, **self.options)
        velocity = found if isinstance(found, Tensor) else found[0]
        torch.autograd.backward(velocity, torch.ones_like(velocity))


@contextmanager
def noted(networks: list[nn.Module]) -> Iterator[list[Call]]:
    """Give the list into which the calls of networks go within the context."""
    calls: list[Call] = []

    def note(network: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls.append(Call(network, arguments, options, torch.is_grad_enabled()))

    hooks = [network.register_forward_pre_hook(note, with_kwargs=True) for network in networks]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def networks_of(trainer: Trainer) -> list[nn.Module]:
    """Return the student's network and its teachers', each once."""
    found = [trainer.backbone, *(field.backbone for field in _fields(trainer))]
    return list({id(network): network for network in found}.values())


def _fields(trainer: Trainer) -> Iterator[Any]:
    for field in trainer.teachers.values():
        inner: Any = field
        while not hasattr(inner, "backbone"):
            inner = inner.field
        yield inner


def make_again(calls: list[Call]) -> None:
    """Make calls once more, in their order."""
    for call in calls:
        call.again()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    params, paths = prepared(arguments.checkout)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        trainer = trainer_of(params, paths, Path(work))
        networks = networks_of(trainer)
        for number in range(WARM_UP + arguments.updates):
            with noted(networks) as calls:
                update = timed_update(trainer)
            arithmetic = seconds_of(partial(make_again, calls))
            trainer.optimizer.zero_grad(set_to_none=True)
            if number >= WARM_UP:
                states = sum(update.evaluations.values())
                rows.append(
                    {
                        "update_seconds": update.seconds,
                        "arithmetic_seconds": arithmetic,
                        "share": arithmetic / update.seconds,
                        "evaluations": dict(update.evaluations),
                        "images_per_second": params.distill.batch_size / update.seconds,
                        "ms_per_evaluation": 1e3 * update.seconds / states,
                    }
                )
    record = {
        "command": f"python benchmarks/step.py CHECKOUT --updates {arguments.updates}",
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "share": statistics.median(row["share"] for row in rows),
        "updates": rows,
    }
    write_json(arguments.out, record)
    sys.stdout.write(
        f"arithmetic is {record['share']:.3f} of an update (median of {len(rows)}; "
        f"{min(r['share'] for r in rows):.3f} to {max(r['share'] for r in rows):.3f})\n"
    )


if __name__ == "__main__":
    main()

"""Updates of the embedded default against common practice, in images per second.

    python benchmarks/practice.py CHECKOUT [--rounds 5] [--out FILE]

CHECKOUT holds the data, caches and teachers of a finished `make run`; nothing in it is changed.
Common practice is what a plain training loop of a distillation does: a sample at a time with
gradients accumulated, its prompt and its source encoded anew, a whole rollout although one state of
it is asked for, and guidance in two passes. Both train the same student with the same samples per
update. Rounds of the two take turns in one process. Run it with nothing else on the machine.

Three rows tell which part pays: all of it; the same with cached encodings; and with cached
encodings and a rollout that ends at the state that is asked for.
"""

import argparse
import random
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from checkout import prepared, seconds_of, trainer_of
from random_model import timed_update
from torch.nn.functional import mse_loss

from danceflow.data.buckets import encoded_sources, read_bucket, sources_of
from danceflow.fields.field import Condition
from danceflow.ops.files import write_json
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.train.distill.trainer import Trainer

OUT = Path(__file__).parents[1] / "docs" / "results" / "practice.json"
PRACTICES = {
    "common practice": {"encodes": True, "whole": True},
    "with cached encodings": {"encodes": False, "whole": True},
    "and a rollout to the asked state": {"encodes": False, "whole": False},
}


class Practice:
    """A plain training loop on the trainer's student, teachers and data."""

    def __init__(
        self, params: Params, paths: Paths, trainer: Trainer, *, encodes: bool, whole: bool
    ) -> None:
        """Take what is trained.

        Args:
            params: all sections.
            paths: the checkout.
            trainer: whose student, optimiser and average are used.
            encodes: whether every sample is encoded anew.
            whole: whether every rollout goes to its end.
        """
        self.params, self.trainer, self.encodes, self.whole = params, trainer, encodes, whole
        self.random = random.Random(0)
        self.data = {
            name: read_bucket(paths.bucket(config.bucket), "train")
            for name, config in params.capabilities.items()
        }
        self.known: dict[tuple[str, int], Condition] = {}

    def condition(self, name: str, row: int) -> Condition:
        """Return the condition of one row."""
        if not self.encodes and (name, row) in self.known:
            return self.known[name, row]
        family, data = self.trainer.family, self.data[name]
        pictures = sources_of(data, [row]) if self.params.capabilities[name].needs_source else []
        latents, images = encoded_sources(pictures, family.encode)
        prompts = list(data.select([row])["prompt"])
        found = family.condition(prompts, latents or None, images or None)
        self.known[name, row] = found
        return found

    def warm(self, num_rows: int) -> None:
        """Let encodings be there that are cached."""
        for name in self.data:
            for row in range(num_rows):
                self.condition(name, row)

    def update(self, num_rows: int) -> None:
        """Make one update, a sample at a time."""
        trainer, config = self.trainer, self.params.distill
        grid = trainer.family.grid(config.num_steps)
        trainer.optimizer.zero_grad(set_to_none=True)
        names = list(self.data)
        for number in range(config.batch_size):
            name = names[number % len(names)]
            condition = self.condition(name, self.random.randrange(num_rows))
            asked = self.random.randrange(config.num_steps)
            z = torch.randn(1, *trainer.family.latent_shape)
            kept = z
            with torch.no_grad():
                for step in range(config.num_steps if self.whole else asked + 1):
                    if step == asked:
                        kept = z
                        if not self.whole:
                            break
                    velocity = trainer.student(z, grid[step : step + 1], condition)
                    z = z + (grid[step + 1] - grid[step]) * velocity
                sigma = grid[asked : asked + 1]
                teacher = trainer.loaded.field(self.params.capabilities[name].teacher, 1.0)
                target = teacher(kept, sigma, condition)
                scale = self.params.capabilities[name].guidance
                if scale != 1.0:
                    empty = teacher(kept, sigma, trainer.family.null(condition))
                    target = empty + scale * (target - empty)
            loss = mse_loss(trainer.student(kept, sigma, condition), target)
            torch.autograd.backward(loss / config.batch_size)
        torch.nn.utils.clip_grad_norm_(trainer.trainable, config.clip_norm)
        trainer.optimizer.step()
        trainer.ema.update(trainer.backbone)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    params, paths = prepared(arguments.checkout)
    num_rows, batch = 64, params.distill.batch_size
    found: dict[str, list[float]] = {name: [] for name in ("danceflow", *PRACTICES)}
    with tempfile.TemporaryDirectory() as work:
        trainer = trainer_of(params, paths, Path(work))
        practices = {
            name: Practice(params, paths, trainer, **options) for name, options in PRACTICES.items()
        }
        for practice in practices.values():
            practice.warm(num_rows)
        timed_update(trainer)
        for _ in range(arguments.rounds):
            found["danceflow"].append(batch / timed_update(trainer).seconds)
            for name, practice in practices.items():
                seconds = seconds_of(partial(practice.update, num_rows))
                found[name].append(batch / seconds)
    ratios: dict[str, Any] = {
        name: statistics.median(
            own / other for own, other in zip(found["danceflow"], found[name], strict=True)
        )
        for name in PRACTICES
    }
    record = {
        "command": f"python benchmarks/practice.py CHECKOUT --rounds {arguments.rounds}",
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "images_per_second": {name: statistics.median(rates) for name, rates in found.items()},
        "times_as_fast_as": ratios,
        "rounds": found,
    }
    write_json(arguments.out, record)
    for name, ratio in ratios.items():
        sys.stdout.write(f"{ratio:.2f} times as fast as {name}\n")


if __name__ == "__main__":
    main()

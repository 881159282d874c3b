"""Updates against common practice, in images per second: of the embedded default, or of SD3.5.

    python benchmarks/practice.py CHECKOUT [--rounds 5] [--out FILE]
    python benchmarks/practice.py --stock [--rounds 5] [--out FILE]

CHECKOUT holds the data, caches and teachers of a finished `make run`; nothing in it is changed.
`--stock` makes a pipeline of random weights instead, laid out as SD3.5: about 8 M parameters, and
589 tokens in a state (256 of a picture of 256 pixels, 77 of CLIP and 256 of T5). It trains a LoRA
of two looks as `recipes/sd35_lora.yaml` does, in 16 steps, and beside it in 8.

Common practice is what a plain training loop of a distillation does: a sample at a time with
gradients accumulated, its prompt and its source encoded anew, a whole rollout although one state of
it is asked for, and guidance in two passes. It trains the same student with as many samples per
update, float32 as there, and asks at the same places of the rollout. Rounds of all take turns in
one process. Run it with nothing else on the machine.

Three rows tell which part pays: all of it; the same with cached encodings; and with cached
encodings and a rollout that ends at the state that is asked for. Beside them stands what field
evaluations alone would make of it. FILE keeps the other part.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from finished_checkout import prepared, seconds_of, trainer_of
from random_model import timed_update
from stock_checkout import PIXELS_PER_TOKEN, TRANSFORMER, write_checkout
from torch.nn.functional import mse_loss

from danceflow.data.buckets import encoded_sources, read_bucket, sources_of
from danceflow.fields import draw_queries, seed_for
from danceflow.fields.field import Condition
from danceflow.ops.files import write_json
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.train.distill.budget import FORWARD_AND_BACKWARD
from danceflow.train.distill.trainer import Trainer

OUT = Path(__file__).parents[1] / "docs" / "results" / "practice.json"
OURS = "danceflow"
PRACTICES = {
    "common practice": {"encodes": True, "whole": True},
    "with cached encodings": {"encodes": False, "whole": True},
    "and a rollout to the asked state": {"encodes": False, "whole": False},
}
NUM_ROWS = 64
"""Of each capability, at most: those whose encodings are cached."""
STOCK_SIZE, STOCK_STEPS, STOCK_FEWER = 256, 16, 8
STOCK: Mapping[str, Any] = {
    "run.num_threads": 2,
    "distill.lora_rank": 16,
    "distill.num_steps": STOCK_STEPS,
    "distill.batch_size": 8,
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

    def rows(self, name: str) -> range:
        """Return the rows of a capability that are trained on."""
        return range(min(NUM_ROWS, len(self.data[name])))

    def warm(self) -> None:
        """Let encodings be there that are cached."""
        if not self.encodes:
            for name in self.data:
                for row in self.rows(name):
                    self.condition(name, row)

    def asked(self, step: int) -> list[tuple[str, int]]:
        """Return capability and place in the rollout of every sample, as the trainer draws them."""
        trainer, config = self.trainer, self.params.distill
        names = [
            (capability.name, trainer.method.num_samples(config.batch_size, share))
            for capability, share in trainer.rows.router.route(step)
        ]
        seeds = [
            seed_for(config.seed, f"sample/{name}", step, index)
            for name, count in names
            for index in range(count)
        ]
        places = draw_queries(
            trainer.method.query,
            len(seeds),
            config.num_steps,
            1,
            seeds,
            coupling=trainer.method.coupling,
            runs=[count for _, count in names],
        )
        each = [name for name, count in names for _ in range(count)]
        return list(zip(each, places.flatten().tolist(), strict=True))

    def evaluations(self, step: int) -> float:
        """Return the field evaluations of an update, as the ledger counts them."""
        capabilities, steps = self.params.capabilities, self.params.distill.num_steps
        return sum(
            (steps if self.whole else place)
            + (1 if capabilities[name].guidance == 1.0 else 2)
            + FORWARD_AND_BACKWARD
            for name, place in self.asked(step)
        )

    def update(self, step: int) -> None:
        """Make one update, a sample at a time."""
        trainer, config = self.trainer, self.params.distill
        grid = trainer.family.grid(config.num_steps)
        trainer.optimizer.zero_grad(set_to_none=True)
        samples = self.asked(step)
        for name, asked in samples:
            condition = self.condition(name, self.random.choice(self.rows(name)))
            z = torch.randn(1, *trainer.family.latent_shape)
            kept = z
            with torch.no_grad():
                for place in range(config.num_steps if self.whole else asked + 1):
                    if place == asked:
                        kept = z
                        if not self.whole:
                            break
                    velocity = trainer.student(z, grid[place : place + 1], condition)
                    z = z + (grid[place + 1] - grid[place]) * velocity
                sigma = grid[asked : asked + 1]
                teacher = trainer.loaded.field(self.params.capabilities[name].teacher, 1.0)
                target = teacher(kept, sigma, condition)
                scale = self.params.capabilities[name].guidance
                if scale != 1.0:
                    empty = teacher(kept, sigma, trainer.family.null(condition))
                    target = empty + scale * (target - empty)
            loss = mse_loss(trainer.student(kept, sigma, condition), target)
            torch.autograd.backward(loss / len(samples))
        torch.nn.utils.clip_grad_norm_(trainer.trainable, config.clip_norm)
        trainer.optimizer.step()
        trainer.ema.update(trainer.backbone)


def measure(
    params: Params, paths: Paths, trainers: Mapping[str, Trainer], rounds: int
) -> dict[str, Any]:
    """Return images per second of trainers and of common practice, and their ratios.

    Args:
        params: of the first trainer, whose student common practice trains.
        paths: the checkout.
        trainers: by what they are called.
        rounds: how often each makes an update, after one that is not counted.
    """
    first = next(iter(trainers.values()))
    practices = {
        name: Practice(params, paths, first, **options) for name, options in PRACTICES.items()
    }
    for practice in practices.values():
        practice.warm()
    rates: dict[str, list[float]] = {name: [] for name in (*trainers, *practices)}
    spent: dict[str, list[float]] = {name: [] for name in rates}
    batch = params.distill.batch_size
    for counted in range(rounds + 1):
        step = first.step
        for name, trainer in trainers.items():
            update = timed_update(trainer)
            rates[name].append(batch / update.seconds)
            spent[name].append(sum(update.evaluations.values()))
        for name, practice in practices.items():
            if counted:  # a first update of its own has nothing to make
                rates[name].append(batch / seconds_of(partial(practice.update, step)))
                spent[name].append(practice.evaluations(step))
    for name in trainers:
        del rates[name][0], spent[name][0]

    def ratios(found: Mapping[str, list[float]], *, more: bool) -> dict[str, dict[str, float]]:
        return {
            own: {
                other: statistics.median(
                    a / b if more else b / a for a, b in zip(found[own], found[other], strict=True)
                )
                for other in practices
            }
            for own in trainers
        }

    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "samples_per_update": batch,
        "images_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "times_as_fast_as": ratios(rates, more=True),
        "by_evaluations_alone": ratios(spent, more=False),
        "rounds": rates,
        "evaluations_per_update": spent,
    }


def embedded(checkout: Path, rounds: int, work: Path) -> dict[str, Any]:
    """Return the figures of a checkout of the embedded default."""
    params, paths = prepared(checkout)
    return measure(params, paths, {OURS: trainer_of(params, paths, work)}, rounds)


def stock(
    root: Path,
    rounds: int,
    *,
    size: int = STOCK_SIZE,
    fewer: int = STOCK_FEWER,
    changes: Mapping[str, Any] = STOCK,
    transformer: Mapping[str, Any] = TRANSFORMER,
) -> dict[str, Any]:
    """Return the figures of a stock pipeline of random weights.

    Args:
        root: an empty folder.
        rounds: how often each makes an update.
        size: side in pixels of the images.
        fewer: steps of the second trainer.
        changes: of the recipe's parameters.
        transformer: the arguments of the network's class.
    """
    parts = write_checkout(root, size, changes, transformer)
    params, paths = prepared(root)
    short = params.model_copy(
        update={"distill": params.distill.model_copy(update={"num_steps": fewer})}
    )
    trainers = {
        f"{OURS} in {given.distill.num_steps} steps": trainer_of(given, paths, root / str(number))
        for number, given in enumerate((params, short))
    }
    family = next(iter(trainers.values())).family
    prompt = family.condition(["a photo"]).tensors["prompt_embeds"]
    return {
        "parameters": {"all": sum(parts.values()), **parts},
        "image_size": size,
        "tokens": (size // PIXELS_PER_TOKEN) ** 2 + prompt.shape[1],
        **measure(params, paths, trainers, rounds),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, nargs="?")
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.stock == (arguments.checkout is not None):
        parser.error("give a checkout, or --stock")
    part, what = ("stock", "--stock") if arguments.stock else ("embedded", "CHECKOUT")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.stock:
            found = stock(Path(folder), arguments.rounds)
        else:
            found = embedded(arguments.checkout, arguments.rounds, Path(folder))
    record = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    command = f"python benchmarks/practice.py {what} --rounds {arguments.rounds}"
    record[part] = {"command": command, **found}
    write_json(arguments.out, record)
    for own, ratios in found["times_as_fast_as"].items():
        for other, ratio in ratios.items():
            alone = found["by_evaluations_alone"][own][other]
            sys.stdout.write(
                f"{own}: {ratio:.2f} times as fast as {other} ({alone:.2f} by evaluations alone)\n"
            )


if __name__ == "__main__":
    main()

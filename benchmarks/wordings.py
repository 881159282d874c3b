"""Whether a student understands other words after a last stage on more wordings.

    python benchmarks/wordings.py CHECKOUT WORK [--seeds 0 1 2] [--arms plain dropped ...]

CHECKOUT holds the prepared rows, the caches and the teachers of the embedded default; WORK holds
the finished students `plain-0` and so on that benchmarks/few_steps.py leaves there. Every arm
trains each of them on with 60,000 field evaluations. Half of its samples have another prompt, of
which the teacher is asked, too:

    plain     none has
    dropped   every word is left out with a chance of 15 %
    usual     one of the wordings that training has, for the same scene
    noisy     the trained prompt, its encodings with noise of up to their own spread
    reworded  the first of the two wordings that training never has

Then validation rows are answered as the trained prompt says it, in the first and in the second
wording that training never has. Text-to-image takes 16 steps, edits take 4. Writes
docs/results/wordings.json after every score, and takes up what is there.
"""

import argparse
import json
import logging
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from finished_checkout import trainer_of
from torch import Tensor

from danceflow.data.buckets import read_bucket
from danceflow.evaluate.asked import finite_images, task_of
from danceflow.evaluate.records import STANDARD
from danceflow.evaluate.result import result_of
from danceflow.fields import Condition, VelocityField, seed_for
from danceflow.models.package import BACKBONE_FOLDER, read_manifest
from danceflow.ops import determinism
from danceflow.ops.files import sha256, write_json
from danceflow.ops.runtime import set_logging_up
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import MANIFEST, Paths
from danceflow.scenes import prompts
from danceflow.scenes.world import STYLES
from danceflow.train.distill.rows import Drawn
from danceflow.train.distill.trainer import Trainer
from danceflow.train.state import Ema

LOG = logging.getLogger(__name__)
OUT = Path(__file__).parents[1] / "docs" / "results" / "wordings.json"
WORDINGS = prompts._WORDINGS
SHARE, DROPPED, VERSIONS = 0.5, 0.15, 4
STEPS = {"t2i": 16, "local_edit": 4, "global_edit": 4}
PARTS = ("prompt_embeds", "pooled")
Encoded = list[tuple[Tensor, ...]]


def said_otherwise(prompt: str, category: str, wording: int, *, usual: bool) -> str | None:
    """Return a prompt in another wording of its scene; None: it cannot be said so."""
    for usual_ones, held_out in of_category(category):
        for known in sorted(usual_ones, key=len, reverse=True):
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(known))
            if found := re.fullmatch(pattern, prompt):
                wanted = usual_ones if usual else held_out
                try:
                    return wanted[wording % len(wanted)].format_map(found.groupdict())
                except KeyError:
                    return None
    return None


def of_category(category: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the wordings that a row of a category may have; a change of style has its own."""
    name = prompts._SAME_WORDS.get(category, category)
    return [WORDINGS[one] for one in ([name] if name in WORDINGS else STYLES[1:])]


def without_words(prompt: str, draws: random.Random) -> str:
    """Return a prompt without some of its words."""
    return " ".join(word for word in prompt.split() if draws.random() > DROPPED) or prompt


def versions_of(arm: str, texts: list[str], categories: list[str]) -> list[list[str]]:
    """Return the prompts that an arm may have in place of each row's."""
    if arm == "dropped":
        return [
            [without_words(text, draws) for text in texts]
            for draws in map(random.Random, range(VERSIONS))
        ]
    if arm in ("usual", "reworded"):
        return [
            [
                said_otherwise(text, category, number, usual=arm == "usual") or text
                for text, category in zip(texts, categories, strict=True)
            ]
            for number in range(3 if arm == "usual" else 1)
        ]
    return [texts]


def encoded(trainer: Trainer, params: Params, paths: Paths, arm: str) -> dict[str, Encoded]:
    """Return every capability's other prompts, encoded."""
    found = {}
    for name, config in params.capabilities.items():
        rows = read_bucket(paths.bucket(config.bucket), "train")
        with torch.no_grad():
            conditions = [
                trainer.family.condition(texts).tensors
                for texts in versions_of(arm, list(rows["prompt"]), list(rows["category"]))
            ]
            found[name] = [tuple(each[part] for part in PARTS) for each in conditions]
    return found


def with_others(draw: Callable[..., Drawn], arm: str, others: Mapping[str, Encoded]) -> Any:
    """Return what draws rows of which some have another prompt."""

    def drawn(capability: Any, share: float, step: int, count: int, samples: range) -> Drawn:
        item = draw(capability, share, step, count, samples)
        if item.condition is None:
            return item
        versions = others[capability.name]
        draws = random.Random(seed_for(0, f"wording/{capability.name}", step, 0))
        tensors = dict(item.condition.tensors)
        changed = [tensors[part].clone() for part in PARTS]
        for place, row in enumerate(item.rows.tolist()):
            if draws.random() >= SHARE:
                continue
            version, seed, size = draws.choice(versions), draws.randrange(2**31), draws.random()
            noise = torch.Generator().manual_seed(seed)
            for part, other in zip(changed, version, strict=True):
                if arm == "noisy":
                    spread = size * other.std(tuple(range(other.ndim - 1)))
                    part[place] += spread * torch.randn(part[place].shape, generator=noise)
                else:
                    part[place] = other[row]
        return replace(item, condition=Condition(tensors | dict(zip(PARTS, changed, strict=True))))

    return drawn


def trained(params: Params, paths: Paths, start: Path, arm: str, work: Path) -> Trainer:
    """Return a student after its last stage."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    trainer = trainer_of(params, paths, work)
    backbone = trainer.family.load_backbone(start / BACKBONE_FOLDER)
    trainer.backbone.load_state_dict(backbone.state_dict())
    trainer.ema = Ema(trainer.backbone, params.distill.ema_decay)
    trainer.observer = SimpleNamespace(observe=lambda *_, **__: {})  # type: ignore[assignment]
    if arm != "plain":
        others = encoded(trainer, params, paths, arm)
        trainer.rows.draw = with_others(trainer.rows.draw, arm, others)  # type: ignore[method-assign]
    trainer.train()
    shutil.rmtree(work)
    return trainer


def scores_of(
    params: Params, paths: Paths, trainer: Trainer, fields: Mapping[str, VelocityField]
) -> dict[str, dict[str, float]]:
    """Return every capability's mean score by wording, on validation rows."""
    found: dict[str, dict[str, float]] = {}
    for name, config in params.capabilities.items():
        rows = read_bucket(paths.bucket(config.bucket), "validation")
        for label, wording in (("trained", None), ("first", 0), ("second", 1)):
            asked = rows if wording is None else reworded(rows, wording)
            task = task_of(params, name, asked, trainer.family)
            task = task.select(task.where(STANDARD))
            settings = params.evaluate.model_copy(update={"num_steps": STEPS[name]})
            images = finite_images(task, fields[name], settings, label)
            found.setdefault(name, {})[label] = round(result_of(task, images).score, 4)
    return found


def reworded(rows: Dataset, wording: int) -> Dataset:
    """Return the rows that can be said in a held-out wording, said so."""
    pairs = zip(rows["prompt"], rows["category"], strict=True)
    texts = [said_otherwise(text, category, wording, usual=False) for text, category in pairs]
    kept = [place for place, text in enumerate(texts) if text is not None]
    changed = rows.remove_columns("prompt").add_column("prompt", [text or "" for text in texts])
    return changed.select(kept)


def main() -> None:
    """Train, score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    known = ["plain", "dropped", "usual", "noisy", "reworded"]
    parser.add_argument("--arms", choices=known, nargs="+", default=known)
    arguments = parser.parse_args()
    set_logging_up()
    paths = Paths(arguments.checkout.resolve())
    found = json.loads(OUT.read_text()) if OUT.is_file() else {}
    for seed in arguments.seeds:
        for arm in arguments.arms:
            label, start = f"{arm}, seed {seed}", arguments.work / f"plain-{seed}"
            read_manifest(start)
            if found.get(label, {}).get("of") == (digest := sha256(start / MANIFEST)):
                continue
            params = params_of(paths, seed)
            determinism.prepare(params.run)
            determinism.prepare_torch(params.run)
            trainer = trained(params, paths, start, arm, arguments.work / "wordings")
            asking = partial(scores_of, params, paths, trainer)
            if "teacher" not in found:
                found["teacher"] = asking(trainer.teachers)
            scores = asking(dict.fromkeys(params.capabilities, trainer.student))
            found[label] = {"of": digest, **scores}
            write_json(OUT, found)
            LOG.info("%s %s", label, found[label])


def params_of(paths: Paths, seed: int) -> Params:
    """Return the parameters of a last stage."""
    changes = {
        "run.num_threads": 1,
        "distill.seed": 10 + seed,
        "distill.num_updates": 400,
        "distill.max_field_evaluations": 60_000,
        "distill.learning_rate": 0.001,
        "distill.warmup": 10,
        "distill.ema_decay": 0.97,
        "distill.checkpoint_every": 1000,
        "distill.evaluate_every": 1000,
        "distill.grid_every": 1000,
        "evaluate.seeds": [0],
        "tracking.enabled": False,
    }
    return parse_params(override(read_yaml(paths.params), changes), f"{paths.params}, changed")


if __name__ == "__main__":
    main()

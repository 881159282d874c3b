"""What to write next: prompts of before, of the training, and of the world's own grammar."""

import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from danceflow.errors import DanceflowError

_LOG = logging.getLogger(__name__)
_MAX_PROMPTS = 20_000
_DRAWN = 400  # of each category of a drawn world


@dataclass(frozen=True)
class Words:
    """Prompts that a model was trained on, or that its world could ask.

    Attributes:
        create: for new pictures.
        edit: for changes.
    """

    create: tuple[str, ...] = ()
    edit: tuple[str, ...] = ()

    def suggest(self, text: str, used: Iterable[str], count: int, *, is_edit: bool) -> list[str]:
        """Return prompts that go on from a text, those that begin with it first.

        Args:
            text: what is written so far.
            used: prompts of before, the latest first; among equals they stand first.
            count: how many at most.
            is_edit: whether a picture is to be changed.
        """
        typed = text.lower().split()
        known = self.edit if is_edit else self.create
        if not typed:
            return _some(known, count)
        whole = " ".join(typed)
        wanted, last = typed[:-1], typed[-1]
        ranked: dict[str, tuple[int, int, int]] = {}
        for place, prompt in enumerate([*used, *known]):
            low = prompt.lower()
            if low == whole or prompt in ranked:
                continue
            words = low.split()
            if low.startswith(whole):
                rank = 0
            elif set(wanted) <= set(words) and any(
                word.startswith(last) for word in words if word not in wanted
            ):
                rank = 1
            else:
                continue
            ranked[prompt] = rank, len(words), place
        return sorted(ranked, key=lambda prompt: ranked[prompt])[:count]


def find_words(root: Path | None) -> Words:
    """Return the prompts of a checkout: of its training data, else of its world's grammar.

    Nothing is suggested where there is no checkout, or its parameters cannot be read.

    Args:
        root: of the checkout; None: there is none.
    """
    if root is None:
        return Words()
    from danceflow.params.read import load_params
    from danceflow.paths import Paths

    paths = Paths(root)
    try:
        params = load_params(paths.params)
        found: dict[bool, dict[str, None]] = {False: {}, True: {}}
        for capability in params.capabilities.values():
            prompts = _training(paths.bucket(capability.bucket))
            if not prompts and params.data.world == "scenes":
                prompts = _grammar(capability.bucket)
            found[capability.needs_source].update(dict.fromkeys(prompts))
    except DanceflowError as error:
        _LOG.warning("no prompts are suggested: %s", error)
        return Words()
    return Words(tuple(found[False]), tuple(found[True]))


def _training(bucket: Path) -> Sequence[str]:
    if not (bucket / "train").is_dir():
        return ()
    from danceflow.data.buckets import read_bucket

    rows = read_bucket(bucket, "train")
    return [str(prompt) for prompt in rows.select(range(min(len(rows), _MAX_PROMPTS)))["prompt"]]


def _grammar(bucket: str) -> Sequence[str]:
    """Return what the scenes' grammar asks in a bucket."""
    from danceflow.scenes.prompts import BUCKETS, draw_sample

    rng = random.Random(bucket)
    return [
        draw_sample(rng, category, "train").prompt
        for category in BUCKETS[bucket]
        for _ in range(_DRAWN)
    ]


def _some(known: Sequence[str], count: int) -> list[str]:
    """Return a few prompts of different beginnings, always the same ones."""
    by_start: dict[tuple[str, ...], str] = {}
    for prompt in known:
        by_start.setdefault(tuple(prompt.split()[:2]), prompt)
    found = sorted(by_start.values(), key=lambda prompt: (len(prompt.split()), prompt))
    step = max(1, len(found) // max(1, count))
    return found[::step][:count]

"""Served requests beside the training: every check, the words and prompts behind it, and a page."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.data.buckets import read_bucket
from danceflow.errors import UsageError
from danceflow.ops.files import write_json, write_text
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.service.served import now, read_served
from danceflow.watch.checks import (
    Check,
    check_embeddings,
    check_lengths,
    check_scores,
    check_words,
    drawn,
    unknown_words,
)
from danceflow.watch.page import render_page
from danceflow.watch.scores import score_served

if TYPE_CHECKING:
    from danceflow.registry.student import Student

_LOG = logging.getLogger(__name__)

KINDS = ("generate", "edit")
RESULT, PAGE = "watch.json", "watch.html"
_NUM_SHOWN = 20


@dataclass(frozen=True)
class Kind:
    """What was served of one kind, and what stands out.

    Attributes:
        num_served: pictures.
        num_trained: training prompts.
        words: words that no training prompt has, with the number of prompts.
        foreign: the served prompts that are most unlike the training's.
    """

    num_served: int
    num_trained: int
    words: dict[str, int]
    foreign: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        time: when, UTC, ISO 8601.
        since: samples before that were left out.
        versions: pictures by the version that made them.
        checks: every check of every kind that was served.
        kinds: by name.
    """

    time: str
    since: str
    versions: dict[str, int]
    checks: tuple[Check, ...]
    kinds: dict[str, Kind]

    @property
    def crossed(self) -> tuple[Check, ...]:
        """The checks whose limit is crossed."""
        return tuple(check for check in self.checks if check.decision == "crossed")

    def metrics(self) -> dict[str, float]:
        """Return the numbers that a tracking store keeps, such as ``watch/generate/score_loss``."""
        found = {
            f"watch/{check.kind}/{check.name}": check.value
            for check in self.checks
            if check.value is not None
        }
        counts = {f"watch/{name}/served": float(k.num_served) for name, k in self.kinds.items()}
        return {**found, **counts, "watch/crossed": float(len(self.crossed))}

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return asdict(self)


def compare(
    params: Params, paths: Paths, student: "Student", folder: Path, days: float
) -> Comparison:
    """Return how the requests of the last days differ from the training prompts.

    Args:
        params: the parameters of the checkout; ``watch`` has the limits.
        paths: its places; buckets, evaluations and a judge's answers are read.
        student: whose text encoder embeds the prompts.
        folder: of the samples.
        days: how far to look back.

    Raises:
        UsageError: there is no sample of these days.
        DataError: a sample, a bucket or an evaluation is missing or damaged.
        JudgeError: the judge cannot be reached.
    """
    since = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="microseconds")
    rows = list(read_served(folder, since))
    if not rows:
        raise UsageError(
            f"{folder}: holds no request of the last {days:g} days; `danceflow serve-model "
            "--sample-rate 0.1` keeps some"
        )
    this_moment = now()
    if ahead := sum(row.time > this_moment for row in rows):
        _LOG.warning(
            "%s: samples of a time to come: %d; a clock was wrong when they were served, or is "
            "now; they count",
            folder,
            ahead,
        )
    scored = score_served(rows, params, paths)
    checks: list[Check] = []
    kinds: dict[str, Kind] = {}
    for name in KINDS:
        is_edit = name == "edit"
        served = [row.prompt for row in rows if row.is_edit == is_edit]
        trained = training_prompts(params, paths, is_edit=is_edit)
        if not served:
            continue
        if not trained:
            raise UsageError(f"no capability of the parameters is about {name}: nothing to compare")
        found, foreign = _embedded(name, served, trained, student, params)
        mine = [item for item in scored if item.is_edit == is_edit]
        checks += [
            check_words(name, served, trained, params.watch),
            check_lengths(name, served, trained, params.watch),
            found,
            check_scores(
                name, [item.score for item in mine], [item.expected for item in mine], params.watch
            ),
        ]
        unknown = dict(unknown_words(served, trained).most_common(_NUM_SHOWN))
        kinds[name] = Kind(len(served), len(trained), unknown, foreign)
    versions = Counter(str(row.version) for row in rows)
    return Comparison(now(), since, dict(sorted(versions.items())), tuple(checks), kinds)


def training_prompts(params: Params, paths: Paths, *, is_edit: bool) -> list[str]:
    """Return the training prompts of the capabilities of a kind, one for each row.

    Raises:
        DataError: a bucket is missing or damaged.
    """
    buckets = dict.fromkeys(
        item.bucket for item in params.capabilities.values() if item.needs_source == is_edit
    )
    return [
        prompt
        for bucket in buckets
        for prompt in read_bucket(paths.bucket(bucket), "train")["prompt"]
    ]


def write_comparison(found: Comparison, paths: Paths) -> Path:
    """Write JSON and page below ``.danceflow/watch`` and return their folder."""
    folder = paths.watched / found.time.replace(":", "").replace("+0000", "")
    write_json(folder / RESULT, found.as_json())
    write_text(folder / PAGE, render_page(found.as_json()))
    return folder


def _embedded(
    name: str, served: Sequence[str], trained: Sequence[str], student: "Student", params: Params
) -> tuple[Check, tuple[str, ...]]:
    """Return the check of embeddings and the prompts that are most unlike the training's."""
    mine = [served[place] for place in drawn(len(served))]
    others = [trained[place] for place in drawn(len(trained))]
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys([*mine, *others]))}
    vectors = student.embedded(list(places)).numpy()
    check, order = check_embeddings(
        name,
        vectors[[places[prompt] for prompt in mine]],
        vectors[[places[prompt] for prompt in others]],
        params.watch,
    )
    foreign = dict.fromkeys(mine[place] for place in order)
    return check, tuple(foreign)[:_NUM_SHOWN]

"""Two versions of the student side by side: scores, parameters, where they come from, pictures."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.errors import UsageError
from danceflow.ops.tracking import Store, known, store_errors
from danceflow.registry.evidence import stored
from danceflow.report.bootstrap import difference, interval, pair
from danceflow.report.evidence import Evidence, Scored

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_NUM_RESAMPLES = 2000
_SHOWN = 16  # letters of a digest; a commit has as many that tell it apart
# What a picture of a run is called: MLflow writes "~" for "/".
_PICTURE = re.compile(
    r"images/(?P<key>.+)\+step\+(?P<step>\d+)\+timestamp\+(?P<time>\d+)\+[^+]*\.png"
)
_SOURCES = {
    "student.digest": "content",
    "git.commit": "commit",
    "git.dirty": "uncommitted changes",
    "dvc.experiment": "DVC experiment",
}

Pair = tuple[str | None, str | None]
"""What either version says; None: nothing."""


@dataclass(frozen=True)
class ScorePair:
    """What two versions score on one capability.

    Attributes:
        first: mean of the first over its rows; None: it was not asked.
        second: that of the second.
        difference: second less first, on the rows of both; None: they were not asked the same.
        interval: its 95 % bootstrap interval, paired by prompt.
        num_prompts: prompts that both answered.
        note: why there is no difference.
    """

    first: float | None
    second: float | None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    num_prompts: int = 0
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """The same samples of both, as their trainings drew them.

    Attributes:
        key: what they show, such as ``grid/t2i``.
        first: PNG of the first; None: its run has none.
        first_step: the update that it was drawn after.
        second: PNG of the second.
        second_step: the update that it was drawn after.
    """

    key: str
    first: bytes | None
    first_step: int | None
    second: bytes | None
    second_step: int | None


@dataclass(frozen=True)
class Comparison:
    """Two versions of a registered model.

    Attributes:
        names: what they are called, such as ``version 3 (champion)``.
        scores: by capability.
        parameters: those that differ, by name.
        sources: code and data of both, by name.
        grids: pictures side by side.
    """

    names: tuple[str, str]
    scores: Mapping[str, ScorePair]
    parameters: Mapping[str, Pair]
    sources: Mapping[str, Pair]
    grids: Sequence[Grid] = field(default=(), repr=False)

    def as_json(self) -> dict[str, Any]:
        """Return plain data, without the pictures."""
        return {
            "versions": list(self.names),
            "scores": {
                name: {
                    "first": item.first,
                    "second": item.second,
                    "difference": item.difference,
                    "interval": None if item.interval is None else list(item.interval),
                    "num_prompts": item.num_prompts,
                    "note": item.note,
                }
                for name, item in self.scores.items()
            },
            "parameters": {name: list(pair) for name, pair in self.parameters.items()},
            "sources": {name: list(pair) for name, pair in self.sources.items()},
        }


def compare(store: Store, name: str, first: str, second: str, *, pictures: bool) -> Comparison:
    """Return two versions side by side; what a run that was deleted held is missing.

    Args:
        store: where they are registered.
        name: of the registered model.
        first: number of a version, or an alias.
        second: number or alias of the other one.
        pictures: whether to fetch those, too.

    Raises:
        UsageError: there is no such version or alias.
        TrackingError: the store does not answer.
    """
    with store_errors(store.uri):
        both = tuple(_find(store, name, text) for text in (first, second))
        runs = tuple(known(lambda v=v: store.client.get_run(v.run_id)) for v in both)  # type: ignore[misc]
        told = tuple(stored(store, version) for version in both)
        grids = tuple(_grids(store, run) if pictures else {} for run in runs)
    one, other = both
    return Comparison(
        names=(_named(one, first), _named(other, second)),
        scores=_scores(*told),
        parameters=_differing(*(dict(run.data.params) if run else {} for run in runs)),
        sources=_joined(*(_sources(v, run) for v, run in zip(both, runs, strict=True))),
        grids=_paired(*grids),
    )


def _find(store: Store, name: str, text: str) -> "ModelVersion":
    """Return the version that a number or an alias stands for."""
    model = known(lambda: store.client.get_registered_model(name))
    if model is None:
        raise UsageError(f"no student is registered as {name} yet; `danceflow run` registers one")
    number = text if text.isdigit() else model.aliases.get(text)
    if number is None:
        aliases = ", ".join(sorted(model.aliases)) or "none"
        raise UsageError(f"{name} has no {text}: write a version's number or an alias ({aliases})")
    version = known(lambda: store.client.get_model_version(name, str(number)))
    if version is None:
        raise UsageError(f"{name} has no version {number}")
    return version


def _named(version: "ModelVersion", text: str) -> str:
    return f"version {version.version}" + ("" if text.isdigit() else f" ({text})")


def _scores(first: Sequence[Evidence], second: Sequence[Evidence]) -> dict[str, ScorePair]:
    """Return the scores of both, by the same evaluation where there is one."""
    names = dict.fromkeys(name for item in (*first[:1], *second[:1]) for name in item.capabilities)
    return {name: _score_pair(_of(first, name), _of(second, name)) for name in names}


def _of(told: Sequence[Evidence], name: str) -> list[Scored]:
    return [item.capabilities[name] for item in told if name in item.capabilities]


def _score_pair(first: list[Scored], second: list[Scored]) -> ScorePair:
    """Return what two versions score on a capability, of which either may have evaluations."""
    same = ((one, other) for one in first for other in second if not one.differs_from(other))
    found = next(same, None)
    if found is None:
        one, other = (scored[0] if scored else None for scored in (first, second))
        if one is None or other is None:
            note = "one of them was not asked"
        else:
            note = f"evaluated otherwise: {', '.join(one.differs_from(other))}"
        return ScorePair(_mean(one), _mean(other), note=note)
    one, other = found
    rows = {"first": _rows(one), "second": _rows(other)}
    try:
        paired = pair(rows)
    except ValueError:
        return ScorePair(_mean(one), _mean(other), note="they answered other rows")
    less = difference(paired, "second", "first")
    overall = paired.overall()
    return ScorePair(
        float(overall[paired.index("first")]),
        float(overall[paired.index("second")]),
        float(less(overall)),
        interval(paired, less, _NUM_RESAMPLES),
        paired.num_prompts,
    )


def _rows(scored: Scored) -> list[tuple[str, str, int, float]]:
    return [row[:4] for row in scored.rows]


def _mean(scored: Scored | None) -> float | None:
    """Return the mean of the means of the categories."""
    if scored is None:
        return None
    return float(pair({"it": _rows(scored)}).overall()[0])


def _sources(version: "ModelVersion", run: "Run | None") -> dict[str, str]:
    """Return which code and data a version comes from."""
    found = {
        label: version.tags[tag][:_SHOWN] for tag, label in _SOURCES.items() if tag in version.tags
    }
    found["run"] = str(version.run_id)
    if run is not None:
        if "stage.key" in run.data.tags:
            found["training"] = run.data.tags["stage.key"]
        for item in run.inputs.dataset_inputs if run.inputs else ():
            found[f"data {item.dataset.name}"] = item.dataset.digest
    return found


def _joined(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, Pair]:
    names = dict.fromkeys([*first, *second])
    return {name: (first.get(name), second.get(name)) for name in names}


def _differing(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, Pair]:
    joined = _joined(first, second)
    return {name: both for name, both in sorted(joined.items()) if both[0] != both[1]}


def _grids(store: Store, run: "Run | None") -> dict[str, tuple[int, bytes]]:
    """Return the last picture of every key of a run, and the update that it was drawn after."""
    if run is None:
        return {}
    run_id = run.info.run_id
    last: dict[str, tuple[tuple[int, int], str]] = {}
    for item in store.client.list_artifacts(run_id, "images"):
        if found := _PICTURE.fullmatch(item.path):
            key, moment = found["key"].replace("~", "/"), (int(found["step"]), int(found["time"]))
            last[key] = max(last.get(key, (moment, item.path)), (moment, item.path))
    with tempfile.TemporaryDirectory(prefix="danceflow-diff-") as folder:
        return {
            key: (
                moment[0],
                Path(store.client.download_artifacts(run_id, path, folder)).read_bytes(),
            )
            for key, (moment, path) in sorted(last.items())
        }


def _paired(
    first: Mapping[str, tuple[int, bytes]], second: Mapping[str, tuple[int, bytes]]
) -> list[Grid]:
    grids = []
    for key in dict.fromkeys([*first, *second]):
        (step, one), (other_step, other) = (
            found.get(key, (None, None)) for found in (first, second)
        )
        grids.append(Grid(key, one, step, other, other_step))
    return grids

"""What happens to a finished student: registered, judged, promoted, rolled back.

Plain functions, so that a command calls them without a Prefect server; ``flows.pipeline`` makes
tasks of the first two. They are no DVC stages: a side effect on a registry must not be cached.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danceflow.errors import StageError, TrackingError, UsageError
from danceflow.ops.tracking import (
    RunFiles,
    Store,
    Tracker,
    TrackingSettings,
    open_store,
    resume_run,
    source_tags,
)
from danceflow.params.read import load_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.registry.promotion import Change, Promotions, Standing
from danceflow.registry.register import register_student
from danceflow.report.evidence import read_evidence
from flows.rescore import CheckoutEvaluation


def register(root: Path, params: Params) -> int:
    """Return the number of the student's version in the registry; the same content is one version.

    Args:
        root: the checkout or worktree that the pipeline ran in.
        params: its parameters.

    Raises:
        WeightsError: there is no student.
        DataError: its evaluation is missing or damaged.
        TrackingError: the store cannot be reached or refuses.
    """
    paths = Paths(root)
    settings = TrackingSettings.of(root, params.tracking)
    store = open_store(settings)
    files = RunFiles(paths.distill_metrics, paths.distill_report, training_metrics)
    summary = read_summary(paths.summary)

    def resumed() -> Tracker:
        return resume_run(settings, paths.run_pointer, files)

    def run_id() -> str:
        with resumed() as tracker:
            if tracker.run_id is None:
                raise TrackingError("tracking is off: a student cannot be registered")
            return tracker.run_id

    entry = register_student(
        store,
        run_id,
        paths.student,
        settings.registered_model,
        read_evidence(paths, summary["capabilities"], summary["capabilities"]),
        source_tags(root),
    )
    if entry.judged_anew:
        with resumed() as tracker:
            tracker.log_metrics(summary_metrics(summary), params.distill.num_updates)
            for path in (paths.summary, paths.report_page):
                if path.is_file():
                    tracker.log_artifact(path)
    return int(entry.version.version)


def consider(root: Path, params: Params, number: int) -> Standing:
    """Make a version the challenger, judge it against the champion, promote it where allowed.

    A champion that was evaluated otherwise is evaluated again, which takes as long as the student's
    own part of the stage ``evaluate``.

    Args:
        root: the checkout or worktree that the pipeline ran in.
        params: its parameters; ``gate`` is the policy.
        number: a version of the registered model.

    Raises:
        TrackingError: the store cannot be reached or refuses.
    """
    store, name = _registry(root, params)
    version = store.client.get_model_version(name, str(number))
    return Promotions(store, name, CheckoutEvaluation(root, params)).consider(
        version, params.gate, auto_promote=params.gate.auto_promote
    )


def promote(root: Path, version: int | None = None) -> Change:
    """Make a version the champion, if the gate lets it pass, and return the change.

    Args:
        root: the checkout.
        version: its number; None: the challenger.

    Raises:
        GateError: the gate does not let it pass.
        UsageError: there is no such version, or tracking is off.
        TrackingError: the store cannot be reached or refuses.
    """
    params = load_params(Paths(root).params)
    again = CheckoutEvaluation(root, params)
    return Promotions(*_registry(root, params), again).promote(version, params.gate)


def rollback(root: Path) -> Change:
    """Make the former champion the champion again and return the change.

    Args:
        root: the checkout.

    Raises:
        UsageError: there is none, or tracking is off.
        TrackingError: the store cannot be reached or refuses.
    """
    return Promotions(*_registry(root, load_params(Paths(root).params))).rollback()


def read_summary(path: Path) -> Mapping[str, Any]:
    """Return ``reports/summary.json``.

    Raises:
        StageError: it is missing or holds no capabilities.
    """
    try:
        summary: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(summary["capabilities"], dict):
            raise TypeError("capabilities")
    except FileNotFoundError:
        raise StageError(f"{path}: no summary; the stage report writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(f"{path}: is no summary of capabilities: {error!r}") from None
    return summary


def training_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of the training's ``metrics.jsonl`` as the training logs them.

    Args:
        row: losses of one ``capability``, or ``scores`` of all of them, without the step.
    """
    if "scores" in row:
        return {f"validation/{name}": score for name, score in row["scores"].items()}
    common = dict(row)
    loss = f"loss/{common.pop('capability')}"
    return {
        loss: common.pop("loss"),
        **{f"{loss}/sigma_{name}": mean for name, mean in common.pop("sigma_bins").items()},
        **{f"train/{name}": value for name, value in common.items()},
    }


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of every capability's row, such as ``summary/t2i/retention``."""
    return {
        f"summary/{capability}/{name}": float(value)
        for capability, row in summary["capabilities"].items()
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _registry(root: Path, params: Params) -> tuple[Store, str]:
    settings = TrackingSettings.of(root, params.tracking)
    if not settings.enabled:
        raise UsageError("tracking.enabled is false: there is no registry")
    return open_store(settings), settings.registered_model

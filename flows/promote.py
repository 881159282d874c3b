"""What happens to a finished student: registered, judged, promoted, rolled back.

Plain functions, so that a command calls them without a Prefect server; ``flows.pipeline`` makes
tasks of the first two. They are no DVC stages: a side effect on a registry must not be cached.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danceflow.errors import StageError, TrackingError, UsageError
from danceflow.ops.tracking import Store, TrackingSettings, open_store, source_tags
from danceflow.params.read import load_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.registry.promotion import Change, Promotions, Standing
from danceflow.registry.register import register_student
from flows.sync import send


def register(root: Path, params: Params) -> int:
    """Return the number of the student's version in the registry; the same content is one version.

    Args:
        root: the checkout or worktree that the pipeline ran in.
        params: its parameters.

    Raises:
        WeightsError: there is no student.
        TrackingError: the store cannot be reached or refuses.
    """
    paths = Paths(root)
    settings = TrackingSettings.of(root, params.tracking)
    store = open_store(settings)
    summary = read_summary(paths.summary)
    run_id = send(root, params)
    if run_id is None:
        raise TrackingError("tracking is off: a student cannot be registered")
    entry = register_student(
        store,
        lambda: run_id,
        paths.student,
        settings.registered_model,
        summary,
        source_tags(root),
    )
    return int(entry.version.version)


def consider(root: Path, params: Params, number: int) -> Standing:
    """Make a version the challenger, judge it against the champion, promote it where allowed.

    Args:
        root: the checkout or worktree that the pipeline ran in.
        params: its parameters; ``gate`` is the policy.
        number: a version of the registered model.

    Raises:
        TrackingError: the store cannot be reached or refuses.
    """
    store, name = _registry(root, params)
    version = store.client.get_model_version(name, str(number))
    return Promotions(store, name).consider(
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
    return Promotions(*_registry(root, params)).promote(version, params.gate)


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


def _registry(root: Path, params: Params) -> tuple[Store, str]:
    settings = TrackingSettings.of(root, params.tracking)
    if not settings.enabled:
        raise UsageError("tracking.enabled is false: there is no registry")
    return open_store(settings), settings.registered_model

"""One tracked run per executed pipeline: files first, MLflow mirrors them.

The training stage starts a run and leaves a small pointer file beside its results; every later
stage resumes the run through that pointer. A pipeline restored from DVC's cache starts none. When
the store does not know the run (another machine, a new database), it is rebuilt once from the
pointer and the metrics file, and tagged ``restored``.

With tracking off the same calls do nothing, so a stage has no second path. A store that cannot be
reached when a stage starts is an error; one that goes away while a stage works is a warning, and
what was not mirrored is sent again with the next metrics.
"""

from danceflow.ops.tracking.place import main_checkout, mark_experiment
from danceflow.ops.tracking.records import RecordedRun, record_run, recorded_runs
from danceflow.ops.tracking.runs import (
    ORIGIN_TAG,
    RESTORED_TAG,
    RunFiles,
    RunPointer,
    dvc_digests,
    resume_run,
    row_metrics,
    start_run,
)
from danceflow.ops.tracking.store import (
    Store,
    TrackingSettings,
    open_store,
    resolve_uri,
    run_page,
    runs_page,
    source_tags,
    store_errors,
    without_login,
)
from danceflow.ops.tracking.tracker import MlflowTracker, NoTracker, Tracker, flatten
from danceflow.ops.tracking.view import VIEW, save_view

__all__ = [
    "ORIGIN_TAG",
    "RESTORED_TAG",
    "VIEW",
    "MlflowTracker",
    "NoTracker",
    "RecordedRun",
    "RunFiles",
    "RunPointer",
    "Store",
    "Tracker",
    "TrackingSettings",
    "dvc_digests",
    "flatten",
    "main_checkout",
    "mark_experiment",
    "open_store",
    "record_run",
    "recorded_runs",
    "resolve_uri",
    "resume_run",
    "row_metrics",
    "run_page",
    "runs_page",
    "save_view",
    "source_tags",
    "start_run",
    "store_errors",
    "without_login",
]

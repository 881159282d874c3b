"""One tracked run per executed pipeline: files first, MLflow mirrors them.

The training stage starts a run and leaves a small pointer file beside its results; every later
stage resumes the run through that pointer. A pipeline restored from DVC's cache starts none. When
the store does not know the run (another machine, a new database), it is rebuilt once from the
pointer and the metrics file, and tagged ``restored``.

With tracking off the same calls do nothing, so a stage has no second path. A store that is away
when a training starts, or goes away meanwhile, is a warning: the training goes on, and what was not
mirrored is sent from its own record (``metrics.jsonl``, image grids) by whoever comes next: the
training itself, the flow's end, ``danceflow sync``. A store that cannot be used, for a wrong login
or a damaged database, is an error at once.
"""

from danceflow.ops.tracking.address import holds_login, without_login
from danceflow.ops.tracking.place import main_checkout, mark_experiment
from danceflow.ops.tracking.records import RecordedRun, record_run, recorded_runs
from danceflow.ops.tracking.runs import (
    ORIGIN_TAG,
    RESTORED_TAG,
    RunPointer,
    dvc_digests,
    resume_run,
    send_run,
    start_run,
)
from danceflow.ops.tracking.store import (
    Store,
    TrackingSettings,
    known,
    open_store,
    resolve_uri,
    run_page,
    runs_page,
    source_tags,
    store_errors,
)
from danceflow.ops.tracking.tracker import LateTracker, MlflowTracker, NoTracker, Tracker, flatten
from danceflow.ops.tracking.training import TrainingRecord, training_metrics
from danceflow.ops.tracking.view import VIEW, save_view

__all__ = [
    "ORIGIN_TAG",
    "RESTORED_TAG",
    "VIEW",
    "LateTracker",
    "MlflowTracker",
    "NoTracker",
    "RecordedRun",
    "RunPointer",
    "Store",
    "Tracker",
    "TrackingSettings",
    "TrainingRecord",
    "dvc_digests",
    "flatten",
    "holds_login",
    "known",
    "main_checkout",
    "mark_experiment",
    "open_store",
    "record_run",
    "recorded_runs",
    "resolve_uri",
    "resume_run",
    "run_page",
    "runs_page",
    "save_view",
    "send_run",
    "source_tags",
    "start_run",
    "store_errors",
    "training_metrics",
    "without_login",
]

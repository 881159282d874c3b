"""Finished results as runs: written once under a name, found again by what they belong to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from danceflow.ops.tracking.store import Store, store_errors
from danceflow.ops.tracking.tracker import flatten, log_params

_PER_PAGE = 200


@dataclass(frozen=True)
class RecordedRun:
    """A result in the store."""

    name: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def record_run(
    store: Store,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> str:
    """Return the id of a finished run of this name; one that is there is brought up to date.

    Args:
        store: where.
        name: the run's name; it stands for one result.
        tags: what it is found by; they are set last, when the rest is complete.
        params: nested parameters.
        metrics: the result.

    Raises:
        TrackingError: the store refuses.
    """
    from mlflow.entities import Metric, RunTag
    from mlflow.utils.time import get_current_time_millis

    with store_errors(store.uri):
        known = store.client.search_runs(
            [store.experiment_id], f"attributes.run_name = '{name}'", max_results=1
        )
        if known:
            run_id = str(known[0].info.run_id)
        else:
            run_id = str(store.client.create_run(store.experiment_id, run_name=name).info.run_id)
            log_params(store.client, run_id, flatten(params))
        now = get_current_time_millis()
        entries = [Metric(metric, value, now, 0) for metric, value in metrics.items()]
        for start in range(0, len(entries), 1000):
            store.client.log_batch(run_id, metrics=entries[start : start + 1000])
        store.client.log_batch(run_id, tags=[RunTag(tag, value) for tag, value in tags.items()])
        store.client.set_terminated(run_id)
    return run_id


def recorded_runs(store: Store, tag: str, value: str) -> Iterator[RecordedRun]:
    """Yield the runs that have a tag of this value.

    Raises:
        TrackingError: the store refuses.
    """
    token: str | None = None
    with store_errors(store.uri):
        while True:
            page = store.client.search_runs(
                [store.experiment_id],
                f"tags.`{tag}` = '{value}'",
                max_results=_PER_PAGE,
                page_token=token,
            )
            for run in page:
                yield RecordedRun(str(run.info.run_name), run.data.tags, run.data.metrics)
            token = page.token
            if not token:
                return

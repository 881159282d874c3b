"""The columns that a person needs on MLflow's page: a view that the page saves in the experiment.

It is what the page's own "share" makes: a tag of the experiment, and an address that names it. The
page itself decides the order and the width of columns.
"""

import json
from collections.abc import Sequence

from danceflow.ops.tracking.store import Store, store_errors

VIEW = "danceflow"
"""The view's name, as the page's address has it."""

_TAG = f"mlflow.sharedViewState.{VIEW}"


def save_view(store: Store, capabilities: Sequence[str]) -> None:
    """Save the view in the experiment, or bring it up to date.

    Args:
        store: the store.
        capabilities: names; of each there are a score and a retention.

    Raises:
        TrackingError: the store refuses.
    """
    columns = [
        _column("tags", "verdict"),
        *(_column("metrics", f"score.{name}") for name in capabilities),
        *(_column("metrics", f"retention.{name}") for name in capabilities),
        _column("metrics", "field_evaluations"),
        _column("metrics", "seconds"),
        _column("tags", "dvc.experiment"),
        _column("attributes", "Models"),
    ]
    value = json.dumps(
        {
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "selectedColumns": columns,
            "runsHiddenMode": "FIRST_20_RUNS",
            "hideEmptyCharts": True,
        }
    )
    with store_errors(store.uri):
        if store.client.get_experiment(store.experiment_id).tags.get(_TAG) != value:
            store.client.set_experiment_tag(store.experiment_id, _TAG, value)


def _column(kind: str, name: str) -> str:
    """Return how the page names a column."""
    return f"{kind}.`{name}`"

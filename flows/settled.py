"""A run that has nothing to execute: it asks DVC and the registry, and needs no Prefect server."""

import logging
from pathlib import Path

from danceflow.params.read import load_params
from danceflow.paths import Paths
from flows import dvc_graph, promote
from flows.dvc_stage import Outcome, StageResult
from flows.experiment import check_raw
from flows.result import PipelineResult

_LOG = logging.getLogger(__name__)


def settled(root: Path) -> PipelineResult | None:
    """Return what a run of the checkout would come to, None where a stage has to run for it.

    The student is registered and judged as a run does it, where that has not happened. Another
    DVC command at work in the checkout counts as a stage that has to run.

    Args:
        root: the checkout.

    Raises:
        ConfigError: the parameters are wrong.
        DvcError: DVC cannot read the repository.
        TrackingError: the store cannot be reached or refuses.
    """
    params = load_params(Paths(root).params)
    check_raw(root)
    nodes = dvc_graph.stage_graph(root)
    if dvc_graph.changed_stages(root):
        return None
    dvc_graph.tidy(root, _LOG.info)
    stages = tuple(
        StageResult(node.name, Outcome.FROZEN if node.frozen else Outcome.UNCHANGED, 0.0)
        for node in nodes
    )
    summary = promote.read_summary(Paths(root).summary)
    standing = None
    if params.tracking.enabled:
        number = promote.register(root, params)
        standing = promote.consider(root, params, number)
    return PipelineResult(stages, summary, None, standing)

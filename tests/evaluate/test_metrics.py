"""Every row of the table says what its metric yields and needs."""

from pathlib import Path

from danceflow.evaluate.metrics import METRICS
from danceflow.evaluate.metrics.open import open_metrics
from danceflow.params.sections import WeightsParams
from danceflow.report.page.page import human


def test_a_metric_yields_what_its_row_names(
    tasks, alexnet: Path, inception: Path, clip: Path
) -> None:
    paths = WeightsParams(clip=str(clip), lpips=str(alexnet), inception=str(inception))
    evaluators, left_out = open_metrics(paths, Path())
    assert left_out == []
    for name, task in tasks.items():
        part = task.select(range(3))
        for metric, evaluator in zip(METRICS, evaluators, strict=True):
            found = [item.name for item in evaluator(part, part.target)]
            left = metric.only_edits and name == "t2i"
            assert found == ([] if left else list(metric.measurements))


def test_every_path_of_weights_belongs_to_one_row() -> None:
    assert [row.weights for row in METRICS if row.weights] == list(WeightsParams.model_fields)


def test_pages_show_the_names_of_the_table() -> None:
    for metric in METRICS:
        assert [human(name) for name in metric.measurements] == list(metric.measurements.values())

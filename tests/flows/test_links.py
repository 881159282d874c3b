"""What is written down of a run, here and there."""

from flows.links import Links


def test_a_line_and_a_message_name_what_there_is():
    whole = Links(
        "f1", "http://p/runs/flow-run/f1", "trial", "r1", "http://m/#/experiments/1/runs/r1"
    )
    assert whole.line == (
        "[flow run](http://p/runs/flow-run/f1) · [MLflow run](http://m/#/experiments/1/runs/r1) · "
        "DVC experiment `trial`"
    )
    assert whole.message.splitlines() == [
        "danceflow: experiment trial",
        "",
        "Prefect: http://p/runs/flow-run/f1",
        "MLflow: http://m/#/experiments/1/runs/r1",
    ]
    assert whole.tags == {
        "prefect.flow_run_id": "f1",
        "prefect.flow_run_url": "http://p/runs/flow-run/f1",
        "dvc.experiment": "trial",
        "mlflow.note.content": whole.line,
    }
    alone = Links("f1", "http://p/runs/flow-run/f1", None, None, None)
    assert alone.line == "[flow run](http://p/runs/flow-run/f1)"
    assert "dvc.experiment" not in alone.tags

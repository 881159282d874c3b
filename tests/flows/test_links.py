"""What is written down of a run, here and there."""

from pathlib import Path

from danceflow.ops.tracking import mark_experiment
from danceflow.paths import Paths
from flows.links import Links, show_in_report


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


def test_the_page_beside_the_report_holds_every_address_and_no_login():
    page = Links(
        "f1",
        "http://ann:secret@p/runs/flow-run/f1",
        "trial <b>",
        "r1",
        "http://m/#/experiments/1/runs/r1",
    ).html
    assert 'href="http://***@p/runs/flow-run/f1" target="_blank"' in page
    assert 'href="http://m/#/experiments/1/runs/r1" target="_blank"' in page
    assert "trial &lt;b&gt;" in page
    assert "secret" not in page
    assert "<script" not in page
    assert "MLflow" not in Links("f1", "http://p/f1", None, None, None).html


def test_the_links_lie_in_the_checkout_where_the_report_looks_for_them(tmp_path: Path):
    checkout, worktree = Paths(tmp_path / "checkout"), Paths(tmp_path / "worktree")
    for paths in (checkout, worktree):
        paths.reports.mkdir(parents=True)
    mark_experiment(worktree.root, checkout.root)
    links = Links("f1", "http://p/f1", "trial", None, None, key="0123abcd")
    show_in_report(links, worktree.root)
    assert not (checkout.reports / "runs").exists()  # there is no report
    worktree.report_page.write_text("a page")
    show_in_report(links, worktree.root)
    assert checkout.run_links("0123abcd").read_text() == links.html
    assert not (worktree.reports / "runs").exists()
    assert checkout.run_links("../../etc/x") == checkout.reports / "runs" / "x.html"

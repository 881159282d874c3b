"""A server whose address holds a password: it works, and nobody sees the password."""

import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from PIL import Image

from danceflow.errors import TrackingError
from danceflow.ops.tracking import TrackingSettings, open_store, send_run, start_run
from danceflow.ops.tracking.login import use_login

pytestmark = pytest.mark.pipeline


def holding(folder: Path, *secrets: str) -> list[Path]:
    """Return the files below a folder that hold one of some texts."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets)
    ]


def test_a_login_in_the_address_works_and_stands_nowhere(
    server, tmp_path, monkeypatch, caplog, capfd
) -> None:
    import mlflow

    caplog.set_level(logging.DEBUG)
    settings = TrackingSettings(tmp_path, True, server.uri, "login", "student")
    params = {"tracking": {"uri": server.uri}, "judge": "https://h/v1?api_key=pl@nted"}
    folder = tmp_path / "work"
    folder.mkdir()
    with start_run(settings, folder / "run.json", name="n", key="k", params=params) as tracker:
        (folder / "metrics.jsonl").write_text('{"step": 1, "scores": {"t2i": 0.5}}\n')
        tracker.log_metrics({"validation/t2i": 0.5}, 1)
        tracker.log_image("grid/t2i", Image.new("RGB", (8, 8)), 1)
        tracker.log_artifact(folder / "metrics.jsonl")
    assert send_run(settings, folder / "run.json") == tracker.run_id
    store = open_store(settings)
    assert (store.uri, repr(store).count("127.0.0.1")) == (server.address, 0)
    run = store.client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics["validation/t2i"]) == ("FINISHED", 0.5)
    assert run.data.params["tracking.uri"] == f"http://***@127.0.0.1:{server.port}"
    with store.as_current(), mlflow.start_run(run_id=tracker.run_id):
        mlflow.set_tag("by", "the global client")
    child = subprocess.run([sys.executable, "-c", "import os; print(dict(os.environ))"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    out, err = capfd.readouterr()
    said = [child.stdout, out, err, caplog.text, repr(settings), str(dict(os.environ))]
    for secret in (server.password, server.quoted, "pl@nted"):
        assert all(secret not in text for text in said)
    assert holding(tmp_path, server.password, server.quoted, "pl@nted") == []
    assert [
        p for p in holding(server.folder, server.password, server.quoted) if p.name != "auth.db"
    ] == []


@pytest.mark.parametrize("login", ["", "admin:n%30t-it@", "nobody:n%30t-it@"])
def test_a_wrong_login_is_one_clear_error(server, tmp_path, login) -> None:
    uri = server.address.replace("://", f"://{login}")
    settings = TrackingSettings(tmp_path, True, uri, "login", "student")
    with pytest.raises(TrackingError, match="refuses the login.*MLFLOW_TRACKING_URI") as caught:
        start_run(settings, tmp_path / "run.json", name="n", key="k", params={})
    assert not (tmp_path / "run.json").exists()
    told = "".join(traceback.format_exception(caught.value))
    assert "n0t-it" not in told
    assert "n%30t-it" not in told


def test_the_client_s_own_variables_work_too(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", server.user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", server.password)
    open_store(TrackingSettings(tmp_path, True, server.address, "login", "student"))


def test_two_logins_for_one_server_are_refused(tmp_path, monkeypatch) -> None:
    from danceflow.ops.tracking.address import Login

    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "somebody-elses")
    with pytest.raises(TrackingError, match="two logins, .* MLFLOW_TRACKING_AUTH=somebody-elses"):
        use_login("http://host", Login("ann", "secret"))

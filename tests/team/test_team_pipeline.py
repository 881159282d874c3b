"""The pipeline with a team's servers: runs in PostgreSQL, artifacts in S3, secrets nowhere."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import httpx
import psutil
import psycopg2
import pytest
from checkout import Checkout, outcomes
from doc_commands import blocks
from listening import listening
from model_service import wait_for
from repository import ROOT
from secrets_scan import files, git_objects, holders
from team_servers import PLANTED, Servers, ask

from danceflow.ops.tracking import open_store
from flows.team import processes, run

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

MODEL = "danceflow-scenes"


def rows(servers: Servers, database: str, query: str) -> list[tuple[object, ...]]:
    """What a query of one of the databases gives."""
    team = servers.team
    connection = psycopg2.connect(team.database(database), password=team.passwords["postgres"])
    with connection, connection.cursor() as cursor:
        cursor.execute(query)
        found = cursor.fetchall()
    connection.close()
    return found


def objects(servers: Servers) -> dict[str, bytes]:
    """Every object of the bucket."""
    team = servers.team
    client = boto3.client(
        "s3",
        endpoint_url=team.address("s3"),
        region_name="us-east-1",
        aws_access_key_id=team.storage_environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=team.storage_environment["AWS_SECRET_ACCESS_KEY"],
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="danceflow")
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return {key: client.get_object(Bucket="danceflow", Key=key)["Body"].read() for key in keys}


def pids(servers: Servers) -> dict[str, int]:
    """The eldest process of every service that runs."""
    names = ("postgres", "s3", "mlflow", "prefect", "worker")
    return {name: processes.running(servers.team.folder, name)[0].pid for name in names}


def test_runs_are_in_postgres_and_artifacts_in_s3(servers: Servers) -> None:
    assert set(outcomes(servers.table).values()) == {"ran", "frozen"}
    assert rows(servers, "mlflow", "SELECT DISTINCT status FROM runs") == [("FINISHED",)]
    assert rows(servers, "mlflow", "SELECT name, version FROM model_versions") == [(MODEL, 1)]
    states = rows(servers, "prefect", "SELECT name, state_type FROM flow_run")
    assert [state for _, state in states] == ["COMPLETED"]
    found = objects(servers)
    assert any(key.startswith("mlflow/") and key.endswith(".safetensors") for key in found)
    assert any(key.startswith("dvc/runs/") for key in found)
    assert any(key.startswith("dvc/files/md5/") for key in found)
    assert not (servers.checkout.root / "mlflow.db").exists()


def test_the_registered_student_is_served_from_the_store(
    servers: Servers, surroundings: Mapping[str, str], tmp_path: Path
) -> None:
    out = str(tmp_path / "made")
    source = f"models:/{MODEL}/1"
    servers.checkout.run(
        "danceflow", "generate", "a red circle", "--from", source, "--out", out,
        environment=surroundings,
    )  # fmt: skip
    assert (tmp_path / "made" / "000.png").stat().st_size > 100


def test_nobody_outside_of_this_machine_reaches_a_server(servers: Servers) -> None:
    team = servers.team
    names = ("postgres", "s3", "mlflow", "prefect", "worker")
    for name in names:
        is_own = listening(processes.running(team.folder, name)[0])
        assert team.ports[name] in is_own
        assert all(is_own.values()), (name, is_own)


def test_the_worker_runs_what_is_asked_for_on_prefect_s_page(
    servers: Servers, surroundings: Mapping[str, str]
) -> None:
    team, lock = servers.team, servers.checkout.lock
    servers.checkout.run("danceflow", "deploy", environment=surroundings)
    wanted = {"deployments": {"name": {"any_": ["on-demand"]}}}
    (deployment,) = ask(team, "deployments/filter", wanted)
    asked = ask(team, f"deployments/{deployment['id']}/create_flow_run", {})
    begun = {"flow_runs": {"id": {"any_": [asked["id"]]}}}
    deadline = time.monotonic() + 240
    while (found := ask(team, "flow_runs/filter", begun)[0])["state_type"] in {
        "SCHEDULED", "PENDING", "RUNNING",
    }:  # fmt: skip
        assert time.monotonic() < deadline, found["state"]
        time.sleep(0.5)
    for item in ask(team, "deployments/filter", {}):  # no schedule begins beside other tests
        ask(team, f"deployments/{item['id']}/pause_deployment", {})
    logs = ask(team, "logs/filter", {"logs": {"flow_run_id": {"any_": [asked["id"]]}}})
    said = [item["message"] for item in logs]
    assert found["state_type"] == "COMPLETED", said
    assert any("Stage 'distill' is unchanged" in text for text in said)
    assert servers.checkout.lock == lock
    assert rows(servers, "mlflow", "SELECT version FROM model_versions") == [(1,)]


def test_the_model_service_joins_them_and_serves_who_becomes_champion(
    servers: Servers, surroundings: Mapping[str, str]
) -> None:
    """It waits for the first champion, and is started again when it is killed."""
    team, root = servers.team, servers.checkout.root
    client = open_store(servers.checkout.tracking).client
    address, token = team.address("model"), team.passwords["service_token"]
    login = {"authorization": f"Bearer {token}"}

    def up() -> psutil.Process:
        told = servers.checkout.run("danceflow", "team", "up", "--model")
        assert f"model     {address}" in told.splitlines()
        return processes.running(team.folder, "model")[0]

    first = up()
    try:
        assert listening(first) == {team.ports["model"]: True}
        wait_for(lambda: "champion" in httpx.get(f"{address}/readyz").json()["reason"], 240)
        client.set_registered_model_alias(MODEL, "champion", "1")
        first.kill()
        assert up().pid != first.pid
        wait_for(lambda: httpx.get(f"{address}/readyz").status_code == 200, 240)
        body = {"prompts": ["a red circle"], "steps": 1}
        refused = httpx.post(f"{address}/v1/generate", json=body)
        answer = httpx.post(f"{address}/v1/generate", json=body, headers=login, timeout=60)
        assert (refused.status_code, answer.status_code) == (401, 200), answer.text
        assert answer.json()["model"]["version"] == 1
    finally:
        processes.end(team.folder, "model", signal.SIGTERM)
        client.delete_registered_model_alias(MODEL, "champion")
    assert [item.is_running for item in run.standing(root) if item.name == "model"] == [False]


def test_the_page_s_commands_work(servers: Servers) -> None:
    """Those that begin with ``danceflow team``, word by word, but for whole runs."""
    page = ROOT / "docs" / "howto" / "team.md"
    (status,) = (c for c in blocks(page) if c.text.startswith("danceflow team status"))
    told = servers.checkout.run(*status.words)
    assert all(name in told for name in pids(servers))
    (user,) = (c for c in blocks(page) if c.text.startswith("danceflow team exec python"))
    servers.checkout.run(*user.words)
    assert ("ada",) in rows(servers, "mlflow_auth", "SELECT username FROM users")


def test_what_runs_already_stays(servers: Servers) -> None:
    before = pids(servers)
    environment = servers.team.environment_file.read_text()
    assert all(item.is_ready for item in run.up(servers.checkout.root) if item.is_running)
    assert pids(servers) == before
    assert servers.team.environment_file.read_text() == environment


def test_killed_servers_come_back_with_what_they_had(
    servers: Servers, surroundings: Mapping[str, str]
) -> None:
    root, folder, before = servers.checkout.root, servers.team.folder, objects(servers)
    for name in ("postgres", "s3", "mlflow"):
        for process in processes.running(folder, name):
            process.send_signal(signal.SIGKILL)
    assert {item.name for item in run.up(root) if item.is_ready} >= {"postgres", "s3", "mlflow"}
    assert objects(servers) == before
    client = open_store(servers.checkout.tracking).client
    assert [item.version for item in client.search_model_versions()] == ["1"]


def test_a_watcher_starts_again_what_ends_and_may_be_killed(servers: Servers) -> None:
    root, folder = servers.checkout.root, servers.team.folder
    command = [sys.executable, "-m", "danceflow.cli", "team", "up", "--watch"]
    watcher = subprocess.Popen(
        command, cwd=root, env=dict(servers.checkout.environment), stdout=subprocess.DEVNULL
    )
    (before,) = processes.running(folder, "s3")
    before.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 240
    while not [item for item in run.standing(root) if item.name == "s3" and item.is_ready]:
        assert watcher.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)
    watcher.kill()
    watcher.wait()
    assert before.pid not in {item.pid for item in processes.running(folder, "s3")}
    assert all(item.is_ready for item in run.up(root) if item.name != "model")


@pytest.fixture
def clone(servers: Servers, tmp_path: Path) -> Iterator[Checkout]:
    """A second person's clone, with a cache of its own."""
    made = object.__new__(Checkout)
    made.root = tmp_path / "clone"
    made.environment = {**servers.checkout.environment, "DVC_SITE_CACHE_DIR": str(tmp_path / "s")}
    made.environment = {**made.environment, **servers.team.environment}
    made.environment["PYTHONPATH"] = f"{made.root / 'src'}:{made.root}"
    source = str(servers.checkout.root)
    servers.checkout.run("git", "clone", "--quiet", source, str(made.root))
    yield made
    shutil.rmtree(made.root)


def config(checkout: Checkout, url: str, endpoint: str | None = None) -> None:
    checkout.run("dvc", "remote", "add", "--local", "--default", "team", url)
    if endpoint is not None:
        checkout.run("dvc", "remote", "modify", "--local", "team", "endpointurl", endpoint)


def test_a_second_clone_has_everything_from_s3_and_executes_nothing(
    servers: Servers, clone: Checkout
) -> None:
    config(clone, servers.team.remote, servers.team.address("s3"))
    table = clone.run("danceflow", "run", "--pull")
    assert set(outcomes(table).values()) <= {"unchanged", "restored", "frozen"}
    for name in ("models/student", "reports/evaluate", "data/cache/t2i"):
        theirs = {path.name for path in (servers.checkout.root / name).rglob("*")}
        assert {path.name for path in (clone.root / name).rglob("*")} == theirs
    assert clone.lock == servers.checkout.lock
    # Without a lock only the run-cache knows what was made of these inputs.
    (clone.root / "dvc.lock").unlink()
    (clone.root / "reports" / "metrics.json").unlink()
    assert clone.dvc("repro", "--pull") == []
    assert clone.lock == servers.checkout.lock


def test_a_second_clone_has_everything_from_a_folder_and_executes_nothing(
    servers: Servers, clone: Checkout, tmp_path: Path
) -> None:
    folder = str(tmp_path / "remote")
    here = servers.checkout
    here.run("dvc", "remote", "add", "--local", "disk", folder)
    here.run("dvc", "push", "--remote", "disk", "--run-cache")
    here.run("dvc", "remote", "remove", "--local", "disk")
    config(clone, folder)
    clone.run("dvc", "pull", "--run-cache")
    assert clone.dvc("repro") == []


def test_a_run_with_a_remote_that_is_not_there_says_so(servers: Servers, clone: Checkout) -> None:
    done = clone.call("danceflow", "run", "--push")
    assert (done.returncode, "no default DVC remote" in done.stderr) == (1, True)


def test_no_secret_is_written_anywhere(servers: Servers) -> None:
    """Params, logs, reports, git's objects, DVC's cache, MLflow's and Prefect's tables, S3."""
    team, root = servers.team, servers.checkout.root
    planted = {**team.passwords, **PLANTED}
    assert len(planted) == 8
    allowed = (team.folder / "passwords.json", team.environment_file)
    found = holders(planted, files(root, *allowed))
    found += holders(planted, git_objects(root))
    found += holders(planted, [("what danceflow run said", servers.said.encode())])
    found += holders(planted, objects(servers).items())
    for database in ("mlflow", "mlflow_auth", "prefect"):
        found += holders(planted, tables(servers, database))
    assert found == []


def tables(servers: Servers, database: str) -> Iterator[tuple[str, bytes]]:
    """Every table of a database as text."""
    query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    for (name,) in rows(servers, database, query):
        content = rows(servers, database, f'SELECT t::text FROM "{name}" t')
        yield f"table {name} of {database}", "\n".join(str(row[0]) for row in content).encode()


def test_the_scan_finds_what_is_planted(servers: Servers, tmp_path: Path) -> None:
    planted = {"one": "Planted-One/7", "two": "Planted-Two+8"}
    (tmp_path / "plain.log").write_text("x Planted-One/7 y")
    (tmp_path / "page.html").write_text("?key=Planted-Two%2B8")
    assert [line.partition(" in ")[0] for line in holders(planted, files(tmp_path))] == [
        "one",
        "two",
    ]


def test_others_may_not_read_the_passwords(servers: Servers) -> None:
    team = servers.team
    for path in (team.folder / "passwords.json", team.environment_file):
        assert path.stat().st_mode & 0o777 == 0o600
        name = str(path.relative_to(team.root))
        assert servers.checkout.call("git", "check-ignore", name).returncode == 0
        assert servers.checkout.call("dvc", "check-ignore", name).returncode == 0


def test_the_doctor_knows_the_servers(servers: Servers, surroundings: Mapping[str, str]) -> None:
    done = servers.checkout.call("danceflow", "doctor", "--json", environment=surroundings)
    found = {(item["check"], item["level"]) for item in json.loads(done.stdout)}
    wanted = {"mlflow", "prefect", "dvc remote", "clock", "team", "permissions"}
    assert {check for check, level in found if level == "ok"} >= wanted
    assert not [item for item in found if item[1] == "fail"], done.stdout


def test_the_doctor_tells_a_wrong_login_and_not_the_password(
    servers: Servers, surroundings: Mapping[str, str]
) -> None:
    wrong = {
        **surroundings,
        "MLFLOW_TRACKING_PASSWORD": "wrong-Password-1",
        "PREFECT_API_AUTH_STRING": "danceflow:wrong-Password-2",
        "AWS_SECRET_ACCESS_KEY": "wrong-Password-3",
    }
    done = servers.checkout.call("danceflow", "doctor", environment=wrong)
    assert done.returncode == 1
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("fail")]
    assert {"mlflow", "prefect", "dvc"} <= set(failed)
    assert "wrong-Password" not in done.stdout + done.stderr

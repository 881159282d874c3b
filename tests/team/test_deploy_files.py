"""The files of deploy/ and of the hosted workflows: right by their schemas, and true."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml
from repository import ROOT

from danceflow import cli
from flows.team.settings import DATABASES

DEPLOY = ROOT / "deploy"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
OWN_IMAGE = re.compile(r"danceflow:\$\{DANCEFLOW_TARGET:-cpu\}")
SCHEMAS = "check_jsonschema/builtin_schemas/vendor"
SECRETS = re.compile(r"PASSWORD|SECRET|TOKEN|LOGIN|AUTH_STRING|API_KEY|PAGES_KEY")


def read(path: Path) -> Any:
    data = yaml.safe_load(path.read_text())
    if True in data:  # how YAML 1.1 reads the word `on`
        data["on"] = data.pop(True)
    return data


COMPOSE = read(DEPLOY / "compose.yaml")
SERVICES = COMPOSE["services"]


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("compose-spec", DEPLOY / "compose.yaml"),
        ("compose-spec", DEPLOY / "compose.cuda.yaml"),
        *(("github-workflows", path) for path in WORKFLOWS),
    ],
)
def test_a_file_is_right_by_its_schema(schema: str, path: Path) -> None:
    place = next(
        file for file in files("check-jsonschema") or [] if str(file) == f"{SCHEMAS}/{schema}.json"
    )
    wanted = json.loads(place.read_text())
    jsonschema.Draft7Validator(wanted).validate(read(path))


def test_the_dockerfile_has_nothing_that_the_linter_minds() -> None:
    linter = shutil.which("hadolint")
    assert linter is not None
    done = subprocess.run(
        [linter, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_everything_that_a_team_needs_is_a_service() -> None:
    assert set(SERVICES) == {"postgres", "s3", "bucket", "mlflow", "prefect", "worker", "model"}


def test_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        image = service["image"]
        is_pinned = re.fullmatch(r"[\w./-]+:(?=.*\d+[.-]\d+)[\w.-]+", image)
        assert OWN_IMAGE.fullmatch(image) or is_pinned, name
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^ARG PYTHON=(\S+)", text, re.MULTILINE)[0].count(".") == 2
    stages = re.findall(r"^FROM (\S+) AS (\w+)", text, re.MULTILINE)
    assert stages == [
        ("python:${PYTHON}-slim-${DEBIAN}", "base"),
        ("base", "cpu"),
        ("base", "cuda"),
    ]
    for path in WORKFLOWS:
        for used in re.findall(r"uses: (\S+)", path.read_text()):
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", used)


def test_ports_are_on_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_stays_is_on_volumes_and_what_runs_is_looked_at() -> None:
    assert {volume.partition(":")[0] for volume in SERVICES["postgres"]["volumes"]} >= {"postgres"}
    named = {
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
    }
    assert named >= set(COMPOSE["volumes"])
    for name, service in SERVICES.items():
        assert ("healthcheck" in service) == (name != "bucket"), name
        for needed, how in service.get("depends_on", {}).items():
            ends = needed == "bucket"
            wanted = "service_completed_successfully" if ends else "service_healthy"
            assert how["condition"] == wanted


def test_no_file_holds_a_secret() -> None:
    """A secret is a variable without a default; the example leaves each of them empty."""
    example = dict(
        line.split("=", 1)
        for line in (DEPLOY / "example.env").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert all(value == "" for name, value in example.items() if SECRETS.search(name))
    text = (DEPLOY / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)", text)) == set(example)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if SECRETS.search(name) and not name.endswith("_PATH"):
                assert re.fullmatch(r"\$\{\w+:(\?[^}]*|-)\}", value), name
    assert (
        subprocess.run(["git", "check-ignore", "--quiet", "deploy/.env"], cwd=ROOT).returncode == 0
    )


def test_the_databases_are_those_of_the_local_servers() -> None:
    made = re.findall(r"CREATE DATABASE (\w+);", (DEPLOY / "databases.sql").read_text())
    assert tuple(made) == DATABASES
    assert "mlflow_auth" in (DEPLOY / "mlflow-login.ini").read_text()


def test_an_image_holds_code_alone() -> None:
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert {name for line in copied for name in line.split()} == set(kept)
    assert all((ROOT / name).exists() for name in kept)


def test_the_pins_are_audited_every_week_and_when_they_change() -> None:
    workflow = read(ROOT / ".github" / "workflows" / "audit.yaml")
    begins = workflow["on"]
    assert all("constraints.txt" in begins[event]["paths"] for event in ("push", "pull_request"))
    assert re.fullmatch(r"\d+ \d+ \* \* \d", begins["schedule"][0]["cron"])
    steps = workflow["jobs"]["audit"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == ["make setup", "make sbom", "make audit"]
    (kept,) = (step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", ""))
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^sbom:.*\n\tpython deploy/sbom.py {kept}$", makefile, re.MULTILINE)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of the files, by where it stands."""
    for name, service in SERVICES.items():
        if OWN_IMAGE.fullmatch(service["image"]):
            command = service["command"]
            if command[:2] == ["bash", "-c"]:
                for part in command[2].split("&&"):
                    yield name, part.strip().removeprefix("exec ").split()
            else:
                yield name, command
    for path in WORKFLOWS:
        for job, steps in read(path)["jobs"].items():
            for step in steps["steps"]:
                for line in step.get("run", "").splitlines():
                    yield job, line.split(" | ")[0].split()


@pytest.mark.parametrize(("place", "command"), list(commands()))
def test_every_command_exists(place: str, command: list[str]) -> None:
    program, *words = command
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    if program.endswith("danceflow"):
        group = typer.main.get_command(cli.app)
        found = group.commands[words[0]]  # type: ignore[attr-defined]
        assert options <= {name for param in found.params for name in param.opts}
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "python":
        module = ROOT.joinpath(*words[1].split(".")).with_suffix(".py")
        assert words[0] == "-m"
        assert module.is_file()
    elif program in {"mlflow", "prefect"}:
        shown = [word for word in words if not word.startswith("-")]
        depth = 1 if program == "mlflow" else 2
        done = subprocess.run(
            [sys.executable, "-m", program, *shown[:depth], "--help"],
            env={
                "PATH": "/usr/bin:/bin",
                "COLUMNS": "200",
                "NO_COLOR": "1",
                "HOME": "/nonexistent",
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert [name for name in options if name not in done.stdout] == []
    else:
        assert program in {"set", "gh", "cat"}, command


def prefects_own(kind: str) -> dict[str, Any]:
    """The template that a package of workers brings, as the pinned Prefect knows it."""
    package = files("prefect") or []
    name = "collections_data/views/aggregate-worker-metadata.json"
    [place] = [file for file in package if str(file).endswith(name)]
    known: dict[str, Any] = json.loads(place.read_text())[f"prefect-{kind}"][kind]
    return known["default_base_job_configuration"]


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_work_pools_template_is_the_packages_own_with_further_defaults(kind: str) -> None:
    own, found = prefects_own(kind), json.loads((DEPLOY / f"work-pools/{kind}.json").read_text())
    assert found["job_configuration"].keys() == own["job_configuration"].keys()
    assert found["variables"]["definitions"] == own["variables"]["definitions"]
    variables = found["variables"]["properties"]
    for name, schema in own["variables"]["properties"].items():
        assert {**variables[name], "default": None} == {**schema, "default": None}, name
    jsonschema.Draft7Validator.check_schema(found["variables"])
    defaults = {name: item["default"] for name, item in variables.items() if "default" in item}
    jsonschema.Draft7Validator(found["variables"]).validate(defaults)
    used = re.findall(r"\{\{ (\w+) \}\}", json.dumps(found["job_configuration"]))
    assert set(used) == variables.keys()
    assert all(item.get("description") for item in variables.values())
    assert SECRETS.search(json.dumps(defaults)) is None


def test_a_pod_has_what_several_processes_need() -> None:
    template = json.loads((DEPLOY / "work-pools/kubernetes.json").read_text())
    job = template["job_configuration"]["job_manifest"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"project": "/project", "shared-memory": "/dev/shm"}
    assert {volume["name"] for volume in pod["volumes"]} == mounts.keys()
    assert container["workingDir"] == "/project"
    # Fields of a job, which no pod has; Prefect's own template has them in the pod.
    assert not {"parallelism", "completions"} & pod.keys()
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (1, 1, 0)

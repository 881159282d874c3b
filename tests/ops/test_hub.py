"""What comes from the hub and what goes there, with a hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, hub_server
from model_service import write_student
from repository import ROOT
from secrets_scan import files, holders

TOKEN = "hf_planted0SECRET1token2"
CALL = """
import json, sys
from pathlib import Path
from danceflow.errors import DanceflowError
from danceflow.ops import hub
from danceflow.ops.runtime import start
start()
for call in json.loads(sys.argv[1]):
    try:
        if call[0] == "fetch":
            found = hub.fetch(*call[1:])
            print(json.dumps([str(found.path), found.address]))
        else:
            url = hub.push_folder(Path(call[1]), call[2], private=True, message="a student")
            print(json.dumps(url))
    except DanceflowError as error:
        print(json.dumps({"error": str(error), "exit": error.exit_code}))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server(TOKEN) as found:
        found.add("team/pipeline", {"model_index.json": b"old"})
        found.add(
            "team/pipeline",
            {
                "model_index.json": b"{}",
                "transformer/config.json": b"{}",
                "transformer/a.safetensors": b"weights",
                "vae/config.json": b"{}",
                "everything.safetensors": b"the same again",
                "picture.png": b"png",
            },
        )
        loras = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"lora"}
        more = {"two/x.safetensors": b"other", "two/adapter_config.json": b"2"}
        found.add("team/loras", loras | more)
        found.add("team/hidden", loras)
        found.private.add("team/hidden")
        found.add("team/terms", loras)
        found.gated.add("team/terms")
        yield found


def run(hub: Hub, cache: Path, place: Path, *command: str, code: int = 0, **environment: str):
    """A process of its own, since the hub's library reads its environment once."""
    own = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=place,
        env=inherited | own | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done


def call(hub: Hub, cache: Path, *calls: list[str], **environment: str) -> list:
    """What these calls of the module give."""
    done = run(hub, cache, cache.parent, "-c", CALL, json.dumps(calls), **environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


def names(folder: str) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def test_only_what_is_needed_is_fetched_once_and_for_ever_named(hub: Hub, tmp_path: Path) -> None:
    first, last = hub.commits["team/pipeline"]
    hub.asked.clear()
    asked = [
        ["fetch", "hf://team/pipeline", "teacher"],
        ["fetch", "hf://team/loras", "teacher"],
        ["fetch", "hf://team/loras/two/x.safetensors", "teacher"],
        ["fetch", f"hf://team/pipeline@{first}", "pipeline"],
        ["fetch", "hf://team/pipeline", "pipeline"],
    ]
    teacher, loras, two, old, whole = call(hub, tmp_path, *asked)
    assert teacher[1] == f"hf://team/pipeline@{last}/transformer"
    assert names(teacher[0]) == ["a.safetensors", "config.json"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(names(loras[0]))
    assert Path(two[0]).read_bytes() == b"other"
    assert Path(two[0]).with_name("adapter_config.json").read_bytes() == b"2"
    assert Path(old[0], "model_index.json").read_bytes() == b"old"
    assert names(whole[0]) == [
        "model_index.json", "transformer/a.safetensors", "transformer/config.json",
        "vae/config.json",
    ]  # fmt: skip
    assert not [line for line in hub.asked if "everything" in line or "picture" in line]
    hub.asked.clear()
    assert call(hub, tmp_path, *asked, HF_HUB_OFFLINE="1") == [teacher, loras, two, old, whole]
    assert hub.asked == []


def test_what_cannot_be_had_is_told_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    cases = [
        ("hf://team/nothing", "is not there, or is private: log in with `hf auth login`", 1),
        ("hf://team/hidden", "is not there, or is private", 1),
        ("hf://team/terms", "accept its terms on its page, and log in", 1),
        ("hf://team/loras@v9", "has no such revision", 1),
        ("hf://team/loras/three", "there is no three in this repository", 1),
        ("hf://loras", "write hf://owner/name", 2),
        ("hf://datasets/team/rows", "is the address of a dataset, not of a model", 2),
        (f"hf://me:{TOKEN}@team/loras", "take the login out of the address", 2),
    ]
    told = call(hub, tmp_path, *[["fetch", address, "teacher"] for address, _, _ in cases])
    for (_, message, code), found in zip(cases, told, strict=True):
        assert message in found["error"]
        assert found["exit"] == code
    [found] = call(hub, tmp_path, ["fetch", "hf://team/pipeline"], HF_HUB_OFFLINE="1")
    assert "is not in the cache as a whole, and HF_HUB_OFFLINE is set" in found["error"]
    away = Hub(url="http://127.0.0.1:9")
    [found] = call(away, tmp_path, ["fetch", "hf://team/pipeline"])
    assert "the hub does not answer" in found["error"]


def test_a_folder_is_pushed_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    (out / "transformer").mkdir(parents=True)
    (out / "README.md").write_text("---\nlicense: other\n---\n# A student\n")
    (out / "transformer" / "x.safetensors").write_bytes(b"weights")
    push = ["push", str(out), "me/student"]
    [refused] = call(hub, cache, push, HF_TOKEN="hf_another")
    assert "the hub refuses (401)" in refused["error"]
    assert "me/student" not in hub.commits
    address, again, back = call(
        hub, cache, push, ["push", str(out), "hf://me/student"],
        ["fetch", "hf://me/student", "teacher"], HF_TOKEN=TOKEN,
    )  # fmt: skip
    assert address.startswith("hf://me/student@")
    assert isinstance(again, str)
    assert hub.private >= {"me/student"}
    assert hub.files("me/student") == {
        "README.md": (out / "README.md").read_bytes(), "transformer/x.safetensors": b"weights"
    }  # fmt: skip
    assert "error" in back  # a student's folder has no settings at its root
    (out / "notes.txt").write_text(f"login: {TOKEN}\n")
    [held] = call(hub, cache, push, HF_TOKEN=TOKEN)
    assert "notes.txt: holds your token of the hub; nothing was pushed" in held["error"]
    assert holders({"token": TOKEN}, files(cache)) == []


def test_an_export_is_pushed_by_one_command_that_tells_no_token(hub: Hub, tmp_path: Path) -> None:
    student, out, cache = write_student(tmp_path / "student"), tmp_path / "out", tmp_path / "cache"
    export = ("-m", "danceflow.cli", "export", str(out), "--from", str(student))
    push = ("--format", "diffusers", "--push-to", "me/exported")
    refused = run(hub, cache, tmp_path, *export, *push, code=1, HF_TOKEN="hf_another")
    assert "the hub refuses (401)" in refused.stderr
    assert f"the export is in {out}: `hf upload --private me/exported {out} .`" in refused.stderr
    assert "me/exported" not in hub.commits
    shutil.rmtree(out)
    done = run(hub, cache, tmp_path, *export, *push, HF_TOKEN=TOKEN)
    folder, address = done.stdout.splitlines()
    assert folder == str(out)
    assert address == f"hf://me/exported@{list(hub.commits['me/exported'])[-1]}"
    assert "me/exported" in hub.private
    assert hub.files("me/exported") == {name: (out / name).read_bytes() for name in names(str(out))}
    assert "README.md" in hub.files("me/exported")
    assert holders({"token": TOKEN}, files(tmp_path)) == []


def test_teachers_are_brought_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    from tiny_models import shake, stock_pipeline

    from danceflow.models.adapters.lora import add_student_adapter, save_adapter
    from danceflow.models.family import open_family

    stock, root = tmp_path / "stock", tmp_path / "checkout"
    stock_pipeline(with_t5=False).save_pretrained(stock)
    family = open_family("sd3", stock)
    network = family.load_backbone(stock / "transformer")
    shake(add_student_adapter(family, network, rank=2, alpha=2, seed=0))
    hub.add("team/lora", {"edit.safetensors": save_adapter(network, tmp_path / "l").read_bytes()})
    (stock / "README.md").write_text("---\nlicense: openrail\n---\n")
    hub.add("team/lora", {"README.md": b"---\nlicense: mit\n---\n"})
    commit = hub.add_folder("team/sd3", stock)
    hub.private.add("team/sd3")
    for name in ("models", "reports"):
        (root / name).mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, root / name)
    done = run(
        hub, tmp_path / "cache", root, "-m", "danceflow.cli", "bring-teachers", "hf://team/sd3",
        "--family", "sd3", "--teacher", "local=hf://team/lora/edit.safetensors",
        "--teacher", "whole=hf://team/sd3", HF_TOKEN=TOKEN,
    )  # fmt: skip
    assert f"hf://team/sd3@{commit}" in done.stderr
    told = json.loads((root / "models/teachers/manifest.json").read_text())
    assert told["teachers"] == ["base", "local", "whole"]
    assert told["licences"] == {"base": "openrail", "local": "mit", "whole": "openrail"}
    assert holders({"token": TOKEN}, files(tmp_path)) == []

"""The studio over HTTP: what is asked for joins the tree, and what is wrong is told in words."""

import io
import json
import re
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from model_service import wait_for
from PIL import Image
from studio_server import Running, running_studio

from danceflow.pictures import decode, png_base64, png_bytes
from danceflow.registry.open import open_folder
from danceflow.report.page.difference import difference
from danceflow.service.app import Service
from danceflow.service.limits import Limits
from danceflow.service.live import FolderSource, Served
from danceflow.service.served import ServedLog
from danceflow.studio.models import Choice, LocalModels
from danceflow.studio.recipe import read_recipe
from danceflow.studio.tree import Node


def make(client: httpx.Client, studio: Running, **fields: object) -> list[Node]:
    """Ask, wait, and return what joined the tree."""
    before = {node.id for node in studio.studio.tree.nodes(archived=True)}
    sent = {"model": "student", "source": "", **fields}
    answer = client.post("/make", data=sent)
    assert answer.status_code == 200, answer.text
    deadline = time.monotonic() + 60
    while "Cancel" in client.get("/part/queue").text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    nodes = studio.studio.tree.nodes(archived=True)
    return [node for node in nodes if node.id not in before]


@pytest.fixture
def client(studio: Running):
    with studio.client() as found:
        found.get("/")
        yield found


def test_a_picture_is_the_students_own_and_so_is_its_change(client, studio, scenes_student) -> None:
    (made,) = make(client, studio, prompt="a red circle", seed=5)
    student = open_folder(scenes_student, None, "cpu")
    expected = student.generate(["a red circle"], seed=5)[0]
    found = decode(client.get(f"/picture/{made.id}.png").content)
    assert found.tobytes() == expected.tobytes()
    (edit,) = make(client, studio, prompt="make it grayscale", seed=6, source=made.id, steps=3)
    changed = student.edit([expected], ["make it grayscale"], seed=6, num_steps=3)[0]
    found = decode(client.get(f"/picture/{edit.id}.png").content)
    assert found.tobytes() == changed.tobytes()
    assert edit.parent == made.id
    carried = read_recipe(found)
    assert carried is not None
    assert (carried.recipe.capability, carried.recipe.steps) == ("edit", 3)
    assert edit.seconds is not None
    assert 0 < edit.seconds < 60
    assert edit.kept is not None


def test_outside_of_a_mask_the_source_is_put_back(client, studio) -> None:
    (made,) = make(client, studio, prompt="a red circle and a blue square", seed=1)
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 12, 32))
    text = f"data:image/png;base64,{png_base64(png_bytes(mask))}"
    (edit,) = make(client, studio, prompt="make it grayscale", source=made.id, mask=text)
    one, other = (np.asarray(studio.studio.tree.picture(n.picture)) for n in (made, edit))
    assert (one[:, 12:] == other[:, 12:]).all()
    assert (one[:, :10] != other[:, :10]).any()
    assert edit.kept_exactly is not None
    assert edit.kept_exactly >= 20 / 32
    assert edit.recipe is not None
    assert edit.recipe.has_mask
    page = client.get(f"/part/stage/{edit.id}?with={made.id}").text
    assert "were left alone" in page
    gap = decode(client.get(f"/difference/{made.id}/{edit.id}.png").content)
    pair = (studio.studio.tree.picture(node.picture) for node in (made, edit))
    assert gap.tobytes() == difference(*pair).tobytes()  # as the report shows it


def test_variants_have_their_own_seeds_and_two_models_the_same_one(client, studio) -> None:
    nodes = make(client, studio, prompt="two rings", seed=40, variants=3)
    assert [node.recipe.seed for node in nodes] == [40, 41, 42]
    alone = make(client, studio, prompt="two rings", seed=41)
    assert alone[0].picture == nodes[1].picture
    (made,) = make(client, studio, prompt="a red circle", seed=9)
    pair = make(
        client,
        studio,
        prompt="make the red circle blue",
        source=made.id,
        beside="teacher:local_edit",
        seed=3,
    )
    assert [node.recipe.model for node in pair] == ["student", "teacher local"]
    assert {node.recipe.seed for node in pair} == {3}


def test_a_model_is_loaded_once_by_whatever_name(client, studio) -> None:
    models = studio.studio.models
    first = models._load("teacher:local_edit")
    assert models._load("teacher:local_edit") is first
    assert models._teachers._loaded is not None
    other = models._load("teacher:t2i")
    assert other.student._package.family is first.student._package.family


def test_a_file_that_comes_back_restores_prompt_seed_and_source(client, studio, tmp_path) -> None:
    (made,) = make(client, studio, prompt="a red circle", seed=11)
    (edit,) = make(client, studio, prompt="make it grayscale", seed=12, source=made.id)
    file = client.get(f"/picture/{edit.id}.png?download")
    assert file.headers["content-disposition"].endswith('"make-it-grayscale.png"')
    back = client.post("/bring", files={"picture": ("x.png", file.content)}).json()
    assert (back["node"], back["source"]) == (edit.id, made.id)
    assert (back["recipe"]["prompt"], back["recipe"]["seed"]) == ("make it grayscale", 12)
    # In another studio the source comes along in the file.
    student = studio.studio.models._live.served
    assert student is not None
    other = Path(tmp_path / "elsewhere")
    with (
        running_studio(other, Path(), models=studio.studio.models) as elsewhere,
        elsewhere.client() as asked,
    ):
        back = asked.post("/bring", files={"picture": ("x.png", file.content)}).json()
        tree = elsewhere.studio.tree
        assert tree.node(back["source"]).picture == made.picture
        assert tree.node(back["node"]).parent == back["source"]


def test_a_mask_comes_along_and_a_file_that_is_gone_is_told(client, studio, tmp_path) -> None:
    (made,) = make(client, studio, prompt="a red circle", seed=21)
    mask = png_base64(png_bytes(Image.new("L", (32, 32), 255)))
    (edit,) = make(client, studio, prompt="make it grayscale", source=made.id, mask=mask)
    file = client.get(f"/picture/{edit.id}.png").content
    with (
        running_studio(tmp_path, Path(), models=studio.studio.models) as elsewhere,
        elsewhere.client() as asked,
    ):
        node = asked.post("/bring", files={"picture": ("x.png", file)}).json()["node"]
        again = read_recipe(decode(asked.get(f"/picture/{node}.png").content))
        assert again == read_recipe(decode(file))
        seen = elsewhere.studio.tree.node(node).seen
        place = tmp_path / "pictures" / f"{seen}.png"
        whole = place.read_bytes()
        for damage, told in ((whole[:40], "is damaged: bring"), (None, "is gone: bring")):
            place.unlink()
            if damage is not None:
                place.write_bytes(damage)
            answer = asked.get(f"/seen/{node}.png")
            assert (answer.status_code, told in answer.text) == (422, True), answer.text
            assert str(tmp_path) not in answer.text
            back = asked.post("/bring", files={"picture": ("x.png", file)}).json()
            assert (back["node"], place.read_bytes()) == (node, whole)


def test_pictures_of_elsewhere_are_framed_as_the_student_sees_them(client, studio) -> None:
    photo = Image.effect_noise((90, 60), 60).convert("RGB")
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG")
    answer = client.post("/bring", files={"picture": ("Ein Bild.jpg", buffer.getvalue())}).json()
    node = studio.studio.tree.node(answer["node"])
    assert (node.name, node.width, node.height) == ("Ein Bild", 90, 60)
    (edit,) = make(client, studio, prompt="make it grayscale", source=node.id)
    seen = decode(client.get(f"/seen/{edit.id}.png").content)
    assert seen.size == (edit.width, edit.height) == (32, 32)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"no picture", "is no picture"),
        (b"", "choose a picture"),
        (png_bytes(Image.new("RGB", (20, 20), "red"))[:60], "damaged"),
    ],
)
def test_a_file_that_is_no_picture_is_told(client, studio, data, told) -> None:
    answer = client.post("/bring", files={"picture": ("x.png", data)})
    assert answer.status_code == 422
    assert told in answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"prompt": "  "}, 422, "the prompt is empty"),
        ({"prompt": "x" * 2001}, 422, "the prompt has 2001 characters"),
        ({"prompt": "a ring", "seed": "x"}, 422, "seed: write a whole number"),
        ({"prompt": "a ring", "seed": "-1"}, 422, "seed:"),
        ({"prompt": "a ring", "steps": "101"}, 422, "at most 100"),
        ({"prompt": "a ring", "guidance": "nan"}, 422, "guidance:"),
        ({"prompt": "a ring", "guidance": "a"}, 422, "guidance: write a number"),
        ({"prompt": "a ring", "variants": "9"}, 422, "at most 8"),
        ({"prompt": "a ring", "model": ""}, 422, "model: choose one"),
        ({"prompt": "a ring", "source": "gone"}, 404, "not in the tree any more"),
    ],
)
def test_what_cannot_be_made_is_told_in_words(client, studio, fields, status, told) -> None:
    answer = client.post("/make", data={"model": "student", "source": "", **fields})
    assert answer.status_code == status
    assert told in answer.json()["error"]


def test_what_goes_wrong_later_is_told_in_the_queue(client, studio) -> None:
    for model, told in (
        ("nobody", "no model &#39;nobody&#39; here"),
        ("teacher:local_edit", "not one that makes new pictures"),
        ("teacher:none", "there is no teacher of none"),
    ):
        assert make(client, studio, prompt="a ring", model=model) == []
        assert told in client.get("/part/queue").text
    (made,) = make(client, studio, prompt="a red circle", seed=1)
    fields = {"source": made.id, "second": made.id}
    assert make(client, studio, prompt="make it grayscale", **fields) == []
    assert "this student edits one picture at most" in client.get("/part/queue").text
    assert client.get("/part/further", params={"model": "student", **fields}).text.strip() == ""
    assert make(client, studio, prompt="a ring", size="64x64") == []
    assert "makes no images of 64x64" in client.get("/part/queue").text


def test_every_text_is_escaped(client, studio) -> None:
    text = "<img src=x onerror=alert(1)> \"&'"
    (made,) = make(client, studio, prompt=text)
    client.post(f"/node/{made.id}/rename", data={"title": "<script>alert(2)</script>"})
    pages = [
        client.get(path).text
        for path in (
            f"/?node={made.id}",
            f"/part/stage/{made.id}?with={made.id}",
            "/part/queue",
            "/part/history",
            f"/part/hints?prompt={text}",
        )
    ]
    for page in pages:
        assert "<img src=x" not in page
        assert "<script>alert" not in page
    away = client.get("/?node=<script>alert(3)</script>", headers={"Accept": "text/html"})
    assert away.status_code == 404
    assert "<script>alert" not in away.text


def test_words_that_the_model_does_not_know_are_told_before_the_run(client, studio) -> None:
    page = client.get("/part/hints", params={"prompt": "a red unicorn", "model": "student"}).text
    assert "words that the model does not know: &#39;unicorn&#39;" in page
    page = client.get("/part/hints", params={"prompt": "a red", "model": "student"}).text
    assert "does not know" not in page
    assert "a red circle" in page


def test_history_is_searched(client, studio) -> None:
    make(client, studio, prompt="a photo of a green cross")
    found = client.get("/part/history", params={"search": "cross green"}).text
    assert "a photo of a green cross" in found
    assert "No prompt" in client.get("/part/history", params={"search": "zebra"}).text


def test_a_lineage_goes_out_as_a_folder_and_as_a_strip(client, studio) -> None:
    (made,) = make(client, studio, prompt="a red circle", seed=2)
    (edit,) = make(client, studio, prompt="make it grayscale", source=made.id)
    folder = zipfile.ZipFile(io.BytesIO(client.get(f"/lineage/{edit.id}.zip").content))
    names = [Path(name).name for name in folder.namelist()]
    assert names == ["00-a-red-circle.png", "01-make-it-grayscale.png", "lineage.json"]
    told = json.loads(folder.read(folder.namelist()[-1]))
    assert [item["file"] for item in told] == names[:2]
    carried = read_recipe(decode(folder.read(folder.namelist()[1])))
    assert carried is not None
    assert carried.recipe.prompt == "make it grayscale"
    strip = Image.open(io.BytesIO(client.get(f"/lineage/{edit.id}.png").content))
    assert strip.n_frames == 2


def test_a_task_is_cancelled_by_who_asked_alone_and_a_full_queue_is_told(
    scenes_student: Path, tmp_path: Path
) -> None:
    with (
        running_studio(tmp_path / "tree", scenes_student, limits=Limits(queue=9)) as studio,
        studio.client() as mine,
        studio.client() as theirs,
    ):
        for client in (mine, theirs):
            client.get("/")
        slow = {"prompt": "a ring", "model": "student", "steps": 60, "variants": 8}
        page = mine.post("/make", data=slow).text
        name = re.findall(r'data-task="(\w+)"', page)[0]
        full = theirs.post("/make", data=slow)
        assert full.status_code == 503
        assert "8 pictures wait already, at most 9" in full.json()["error"]
        theirs.post("/make", data={**slow, "variants": 1})
        assert "somebody else" in theirs.get("/part/queue").text
        refused = theirs.post(f"/cancel/{name}")
        assert (refused.status_code, "only they can" in refused.text) == (403, True)
        mine.post(f"/cancel/{name}")
        deadline = time.monotonic() + 60
        while "Cancel" in theirs.get("/part/queue").text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "cancelled" in mine.get("/part/queue").text
        nodes = studio.studio.tree.nodes(archived=True)
        assert len(nodes) == 1  # theirs


def test_progress_is_told_step_by_step(client, studio) -> None:
    client.post("/make", data={"prompt": "a ring", "model": "student", "steps": 40, "variants": 4})
    seen = set()
    deadline = time.monotonic() + 60
    while "Cancel" in (page := client.get("/part/queue").text):
        seen |= set(re.findall(r"step (\d+) of 160", page))
        assert time.monotonic() < deadline
    assert len(seen) > 2
    assert {int(step) for step in seen} <= set(range(1, 161))


@dataclass
class Held:
    """A student that is loaded when it is told."""

    folder: FolderSource
    may: threading.Event

    def newest(self) -> str:
        return self.folder.newest()

    def open(self) -> Served:
        assert self.may.wait(60)
        return self.folder.open()


def test_who_asks_while_the_model_is_being_loaded_waits_for_it(scenes_student, tmp_path) -> None:
    """A page is there before its model is; whoever is quick gets a picture, not a refusal."""
    source = Held(FolderSource(scenes_student, "cpu"), threading.Event())
    service = Service(source, Limits(), ServedLog(tmp_path / "log", 0.0))
    first = Choice("student", "the student", "Students")
    models = LocalModels(first, service.live, service.batcher, {}, list, None)
    service.live.start()
    with (
        running_studio(tmp_path / "tree", scenes_student, models=models) as studio,
        studio.client() as client,
    ):
        assert "32x32" not in client.get("/").text
        assert "warning" not in client.get("/part/hints?prompt=a+red+unicorn&model=student").text
        assert client.post("/make", data={"model": "student", "prompt": "two rings"}).is_success
        assert "loads the model" in client.get("/part/queue").text
        source.may.set()
        told = client.get("/part/models?model=student")
        assert "32x32" in told.text
        assert told.headers["HX-Trigger-After-Settle"] == "model-known"
        assert "unicorn" in client.get("/part/hints?prompt=a+red+unicorn&model=student").text
        wait_for(lambda: bool(studio.studio.tree.nodes(archived=True)))
    service.live.stop()
    service.batcher.close()

"""The service over real HTTP: pictures as the student makes them alone, and reasons in words."""

import base64
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_service import running, wait_for, write_student
from PIL import Image
from tiny_models import WORDS

from danceflow.errors import TrackingError
from danceflow.pictures import png_base64, png_bytes
from danceflow.registry.student import Student
from danceflow.service.app import Service
from danceflow.service.limits import Limits
from danceflow.service.live import FolderSource, Live, Served
from danceflow.service.served import ServedLog, read_served
from danceflow.service.token import Token

JSON = {"content-type": "application/json"}


def file_of(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


RED = file_of(Image.new("RGB", (20, 12), "red"))


def said(answer: httpx.Response) -> str:
    return str(answer.json()["error"])


def files(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(item["image"]) for item in answer.json()["images"]]


def alone(student: Student, prompts, sources=None, **options) -> list[bytes]:
    made = student.run(prompts, sources or [None] * len(prompts), **options)
    return [png_bytes(picture, compress_level=6) for picture in made]


# ---------------------------------------------------------------------------------------------
# Pictures


def test_json_and_forms_give_the_pictures_of_the_student(served, student) -> None:
    prompts = ["a red circle", "the blue square"]
    expected = alone(student, prompts, seed=5, num_steps=3, guidance=1.5)
    fields = {"prompts": prompts, "seed": 5, "steps": 3, "guidance": 1.5}
    with served.client() as client:
        by_json = client.post("/v1/generate", json={**fields, "size": "16x16"})
        by_form = client.post(
            "/v1/generate",
            files=[("prompts", (None, p)) for p in prompts],
            data={"seed": "5", "steps": "3", "guidance": "1.5", "size": ""},
        )
    assert files(by_json) == files(by_form) == expected
    assert by_json.json()["steps"] == 3
    assert by_json.json()["images"][0] == {
        "image": png_base64(expected[0]),
        "size": "16x16",
        "notes": [],
    }
    assert by_json.headers["x-danceflow-model"] == "student/0"


def test_edits_take_base64_text_and_files(served, student) -> None:
    source = Image.new("RGB", (20, 12), "red")
    prompts = ["add a circle", "remove the square"]
    expected = alone(student, prompts, [source, source], seed=1)
    text = png_base64(RED)
    with served.client() as client:
        one = client.post("/v1/edit", json={"prompts": prompts, "images": [text], "seed": 1})
        both = client.post("/v1/edit", json={"prompts": prompts, "images": [text] * 2, "seed": 1})
        form = client.post(
            "/v1/edit",
            data={"prompts": prompts, "seed": "1"},
            files=[("images", ("red.bmp", file_of(source, "BMP"), "image/bmp"))],
        )
    assert files(one) == files(both) == files(form) == expected


def test_the_file_alone_can_be_asked_for(served, student) -> None:
    with served.client() as client:
        answer = client.post(
            "/v1/generate", json={"prompts": ["a circle"]}, headers={"accept": "image/png"}
        )
        refused = client.post(
            "/v1/generate", json={"prompts": ["a", "a"]}, headers={"accept": "image/png"}
        )
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == alone(student, ["a circle"])[0]
    assert (refused.status_code, said(refused)) == (
        406,
        "accept: image/png answers one prompt, 2 are sent; ask for JSON",
    )


def test_words_that_the_model_does_not_know_are_told(served) -> None:
    with served.client() as client:
        answer = client.post("/v1/generate", json={"prompts": ["a zebra", "a circle"]}).json()
    assert answer["images"][0]["notes"] == [
        "the prompt has words that the model does not know: 'zebra'"
    ]
    assert answer["images"][1]["notes"] == []


def test_a_picture_is_the_same_bytes_in_any_company(served, student) -> None:
    """Requests of all kinds at once; every picture is that of the same request alone."""
    sources = [Image.new("RGB", (16, 16), colour) for colour in ("red", "white", "navy")]
    asked = []
    for number, prompt in zip(range(48), cycle(["a red circle", "the blue square", "add a red"])):
        source = sources[number % 3] if number % 4 == 0 else None
        asked.append((prompt, source, number % 7, 1 + number % 2, 1.0 + number % 3 // 2))
    expected = [
        alone(student, [p], [source], seed=seed, num_steps=steps, guidance=scale)
        for p, source, seed, steps, scale in asked
    ]
    before = served.metric("danceflow_batch_rows_count"), served.metric("danceflow_batch_rows_sum")

    def ask(request) -> list[bytes]:
        prompt, source, seed, steps, scale = request
        fields = {"prompts": [prompt], "seed": seed, "steps": steps, "guidance": scale}
        with served.client() as client:
            if source is None:
                return files(client.post("/v1/generate", json=fields))
            fields["images"] = [png_base64(file_of(source))]
            return files(client.post("/v1/edit", json=fields))

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, asked)) == expected
    batches = served.metric("danceflow_batch_rows_count") - before[0]
    rows = served.metric("danceflow_batch_rows_sum") - before[1]
    assert rows == 48
    assert batches < 48  # some were computed together


# ---------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("path", "fields", "status", "reason"),
    [
        ("generate", {"prompt": ["a"]}, 422,
         "unknown field 'prompt': did you mean 'prompts'? known are"),
        ("generate", {}, 422, "prompts: is missing"),
        ("generate", [], 400, "the body should be a JSON object, found a list"),
        ("generate", {"prompts": []}, 422, "prompts: list should have at least 1 item"),
        ("generate", {"prompts": "a"}, 422, "prompts: input should be a valid list, found text"),
        ("generate", {"prompts": ["a", 5]}, 422,
         "prompts[1]: input should be a valid string, found 5"),
        ("generate", {"prompts": ["a", "  "]}, 422, "prompts[1]: is empty"),
        ("generate", {"prompts": ["a" * 201]}, 422, "prompts[0]: has 201 characters, at most 200"),
        ("generate", {"prompts": ["a"] * 7}, 422, "prompts: 7 are sent, at most 6 at once"),
        ("generate", {"prompts": ["a"], "steps": 21}, 422, "steps: 21 are asked for, at most 20"),
        ("generate", {"prompts": ["a"], "steps": 0}, 422, "steps: input should be greater than"),
        ("generate", {"prompts": ["a"], "steps": "4"}, 422,
         "steps: input should be a valid integer, found text"),
        ("generate", {"prompts": ["a"], "seed": -1}, 422, "seed: input should be greater than or"),
        ("generate", {"prompts": ["a"], "seed": 2**63}, 422, "seed: input should be less than or"),
        ("generate", {"prompts": ["a"], "seed": True}, 422,
         "seed: input should be a valid integer, found true"),
        ("generate", {"prompts": ["a"], "guidance": -0.5}, 422, "guidance: input should be"),
        ("generate", {"prompts": ["a"], "guidance": 1e9}, 422, "guidance: input should be less"),
        ("generate", {"prompts": ["a"], "size": "9"}, 422, "size: '9': write a size as WIDTHx"),
        ("generate", {"prompts": ["a"], "size": "24x16"}, 422,
         "size: the student makes no images of 24x16 pixels, but of 16x16"),
        ("generate", {"prompts": ["a"], "images": ["x"]}, 422, "unknown field 'images'"),
        ("edit", {"prompts": ["a"]}, 422, "images: is missing"),
        ("edit", {"prompts": ["a", "a", "a"], "images": ["x", "x"]}, 422,
         "images: 2 are sent for 3 prompts; send one for each, or one for all"),
        ("edit", {"prompts": ["a"], "images": ["secret?words"]}, 422,
         "images[0]: is no base64 text"),
        ("edit", {"prompts": ["a"], "images": [png_base64(b"words")]}, 422,
         "images[0]: is no picture, or of another kind"),
        ("edit", {"prompts": ["a"], "images": [png_base64(RED[:-30])]}, 422,
         "images[0]: is a damaged picture"),
        ("edit", {"prompts": ["a"],
                  "images": [png_base64(file_of(Image.new("1", (101, 100))))]}, 422,
         "images[0]: is too large a picture: 101 x 100 pixels, at most 10,000 are read"),
        ("edit", {"prompts": ["a"], "images": [None]}, 422, "images[0]: input should be a valid"),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_why(served, path, fields, status, reason) -> None:
    with served.client() as client:
        answer = client.post(f"/v1/{path}", content=json.dumps(fields), headers=JSON)
    assert answer.status_code == status
    assert said(answer).startswith(reason)
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"\xff\xfe{", 400, "the body is no JSON"),
        (b'{"prompts": ["a"], "guidance": NaN}', 400, "the body is no JSON: NaN is no JSON number"),
        (b"[" * 100_000, 400, "the body is no JSON"),
        (b'{"prompts": ["\\ud800"]}', 422, "prompts[0]: holds half a character"),
        (b" " * 200_001, 413, "the body is too large: at most 200,000 bytes are read"),
    ],
)
def test_a_bad_body_is_told_why(served, content, status, reason) -> None:
    with served.client() as client:
        answer = client.post("/v1/generate", content=content, headers=JSON)
    assert (answer.status_code, said(answer)[: len(reason)]) == (status, reason)


def test_a_body_of_unknown_length_is_read_to_the_limit_only(served) -> None:
    sent = 0

    def endless():
        nonlocal sent
        while True:
            sent += 10_000
            yield b" " * 10_000

    with served.client() as client:
        try:
            answer = client.post("/v1/generate", content=endless(), headers=JSON)
            assert (answer.status_code, "too large" in said(answer)) == (413, True)
        except httpx.TransportError:
            pass  # the service hangs up on who does not stop
    assert sent < 30_000_000


@pytest.mark.parametrize(
    ("form", "sent", "reason"),
    [
        ({"prompts": ["a"], "colour": "red"}, [], "unknown field 'colour'"),
        ({"prompts": ["a"], "seed": ["1", "2"]}, [], "seed: is given more than once"),
        ({"prompts": ["a"], "seed": "1.5"}, [], "seed: input should be a valid integer"),
        ({"prompts": ["a"], "guidance": "nan"}, [], "guidance: input should be"),
        ({}, [("prompts", ("p.txt", b"a"))], "prompts: send text, not a file"),
        ({"prompts": ["a"]}, [("seed", ("p.txt", b"a"))], "seed: send text, not a file"),
    ],
)
def test_a_bad_form_is_told_why(served, form, sent, reason) -> None:
    parts = [(name, (None, v)) for name, vs in form.items() for v in
             (vs if isinstance(vs, list) else [vs])]  # fmt: skip
    with served.client() as client:
        answer = client.post("/v1/generate", files=parts + sent)
    assert (answer.status_code, said(answer)[: len(reason)]) == (422, reason)


def test_other_types_addresses_and_methods(served) -> None:
    with served.client() as client:
        text = client.post("/v1/generate", content=b"a", headers={"content-type": "text/plain"})
        cut = client.post(
            "/v1/generate", content=b"--x\r\n", headers={"content-type": "multipart/form-data"}
        )
        nowhere, method = client.get("/v2"), client.get("/v1/generate")
    assert (text.status_code, said(text)) == (
        415,
        "content-type: send application/json or multipart/form-data, found text/plain",
    )
    assert (cut.status_code, said(cut)[:24]) == (400, "the form cannot be read:")
    assert (nowhere.status_code, method.status_code) == (404, 405)
    assert "/v1/edit" in said(nowhere)
    assert said(method) == "GET is not answered here"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
FIELDS = ("prompts", "images", "seed", "steps", "guidance", "size", "Prompts", "")
LIKELY = st.fixed_dictionaries(
    {"prompts": st.lists(st.sampled_from(WORDS) | st.text(max_size=9), max_size=3)},
    optional={
        "seed": st.integers(-1, 2**64) | VALUES,
        "steps": st.integers(-1, 3) | VALUES,
        "guidance": st.floats() | VALUES,
        "size": st.sampled_from(["16x16", "1x1"]) | VALUES,
        "images": st.lists(st.sampled_from([png_base64(RED)]) | st.text(max_size=9), max_size=2),
    },
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.sampled_from(["generate", "edit"]),
    fields=LIKELY | st.dictionaries(st.sampled_from(FIELDS), VALUES) | VALUES,
)
def test_whatever_is_sent_is_answered_or_refused(served, path, fields) -> None:
    with served.client() as client:
        answer = client.post(f"/v1/{path}", content=json.dumps(fields), headers=JSON)
    assert answer.status_code in {200, 400, 422}
    assert (answer.status_code == 200) == ("images" in answer.json())
    assert answer.status_code == 200 or said(answer)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.binary(max_size=300),
    kind=st.sampled_from(["application/json", "multipart/form-data; boundary=x", "", "multipart/"]),
    wrap=st.booleans(),
)
def test_whatever_bytes_are_sent_are_refused(served, body, kind, wrap) -> None:
    if wrap:
        body = b'--x\r\nContent-Disposition: form-data; name="images"\r\n\r\n' + body + b"\r\n--x--"
    with served.client() as client:
        answer = client.post("/v1/edit", content=body, headers={"content-type": kind})
    assert answer.status_code in {400, 415, 422}
    assert said(answer)


# ---------------------------------------------------------------------------------------------
# Around the pictures


def test_it_says_how_it_is(served) -> None:
    with served.client() as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        ready = client.get("/readyz").json()
        model = client.get("/v1/model").json()
        client.post("/v1/generate", json={"prompts": ["a"]})
        metrics = client.get("/metrics").text
    assert ready == {"status": "ready", "model": {k: model[k] for k in ready["model"]}}
    assert (model["sizes"], model["steps"], model["computed_together"]) == (["16x16"], 2, 4)
    assert model["limits"]["prompts"] == 6
    for name in (
        'danceflow_requests_total{path="/v1/generate",status="200"}',
        'danceflow_request_seconds_bucket{le="0.01",path="/healthz"}',
        "danceflow_batch_rows_bucket",
        "danceflow_queue_pictures 0.0",
        "danceflow_model_version 0.0",
        'danceflow_model{digest="',
        "process_resident_memory_bytes",
    ):
        assert name in metrics, name


def test_its_description_has_examples_that_work(served) -> None:
    with served.client() as client:
        described = client.get("/openapi.json").json()
        for path in ("/v1/generate", "/v1/edit"):
            operation = described["paths"][path]["post"]
            content = operation["requestBody"]["content"]
            assert content["multipart/form-data"]["schema"]["properties"].keys() >= {"prompts"}
            assert {"400", "413", "422", "503"} <= operation["responses"].keys()
            for example in content["application/json"]["examples"].values():
                fields = {k: v for k, v in example["value"].items() if k != "size"}
                assert client.post(path, json=fields).status_code == 200


def test_who_has_no_token_gets_nothing_but_the_health(student_folder, tmp_path, caplog) -> None:
    token = "a-token-that-is-long-enough"
    service = Service(
        FolderSource(student_folder, "cpu"),
        Limits(),
        ServedLog(tmp_path, 0.0),
        token=Token(token),
    )
    service.live.look()
    with running(service) as served, served.client() as client:
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        paths = ("/metrics", "/v1/model", "/openapi.json", "/nowhere", "/v1/generate")
        wrong = ["", token, f"Basic {token}", f"Bearer {token}x", "Bearer", f"Bearer {token[:-1]}"]
        for path in paths:
            for header in wrong:
                answer = client.post(path, headers={"authorization": header})
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert token not in answer.text
        client.headers["authorization"] = f"bearer {token}"
        assert client.get("/v1/model").status_code == 200
        assert client.post("/v1/generate", json={"prompts": ["a"]}).status_code == 200
        schemes = client.get("/openapi.json").json()["components"]["securitySchemes"]
        assert schemes["HTTPBearer"]["scheme"] == "bearer"
    assert token not in caplog.text
    assert token not in repr(service.token)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "LOCALHOST:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8080"}, 403),
    ],
)
def test_pages_of_other_sites_may_not_ask(served, headers, status) -> None:
    with served.client() as client:
        answer = client.post("/v1/generate", json={"prompts": ["a"], "steps": 1}, headers=headers)
    assert answer.status_code == status


class Slow:
    """A student that waits for a sign before every batch."""

    def __init__(self, student: Student) -> None:
        self.inner, self.may_go, self.num_batches = student, threading.Event(), 0

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def make(self, rows, num_steps=None, guidance=1.0, wanted=lambda: True):
        self.num_batches += 1
        assert self.may_go.wait(60)
        return self.inner.make(rows, num_steps, guidance, wanted)


@pytest.fixture
def slow(student, tmp_path):
    """A service whose student waits for a sign, with room for 4 pictures in its queue."""
    held = Slow(student)
    service = Service(None, Limits(queue=4), ServedLog(tmp_path, 0.0), window_s=0.0)
    service.live._served = Served(held, "slow", 1, "0" * 64)  # type: ignore[arg-type]
    with running(service) as served:
        yield served, held
        held.may_go.set()


def test_a_full_queue_says_when_to_come_again(slow) -> None:
    served, held = slow
    with ThreadPoolExecutor(3) as pool, served.client() as client:
        first = pool.submit(client.post, "/v1/generate", json={"prompts": ["a"]})
        wait_for(lambda: held.num_batches == 1)
        second = pool.submit(client.post, "/v1/generate", json={"prompts": ["a"] * 3})
        wait_for(lambda: len(served.service.batcher) == 3)
        refused = client.post("/v1/generate", json={"prompts": ["a"] * 2})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert said(refused).startswith("3 pictures wait already, at most 4; try again in ")
        assert client.get("/healthz").status_code == 200
        assert served.metric("danceflow_queue_pictures") == 3
        held.may_go.set()
        assert first.result().status_code == second.result().status_code == 200
        assert client.post("/v1/generate", json={"prompts": ["a"] * 2}).status_code == 200


def test_what_nobody_waits_for_is_not_made(slow) -> None:
    served, held = slow
    body = json.dumps({"prompts": ["a"]}).encode()
    lines = ("POST /v1/generate HTTP/1.1", "Host: localhost", "Content-Type: application/json",
             f"Content-Length: {len(body)}")  # fmt: skip
    sent = "".join(f"{line}\r\n" for line in (*lines, "")).encode() + body
    address = ("127.0.0.1", int(served.address.rpartition(":")[2]))
    gone = [socket.create_connection(address) for _ in range(3)]
    gone[0].sendall(sent)
    wait_for(lambda: held.num_batches == 1)
    for waiting in gone[1:]:
        waiting.sendall(sent)
    wait_for(lambda: len(served.service.batcher) == 2)
    for client in gone:
        client.close()
    wait_for(lambda: len(served.service.batcher) == 0)
    held.may_go.set()
    wait_for(lambda: served.metric("danceflow_dropped_pictures_total") == 3)  # the begun one, too
    assert held.num_batches == 1
    with served.client() as client:
        assert client.post("/v1/generate", json={"prompts": ["a"]}).status_code == 200


def test_a_stop_waits_for_what_has_begun(slow) -> None:
    served, held = slow
    with ThreadPoolExecutor(2) as pool, served.client() as client:
        begun = pool.submit(client.post, "/v1/generate", json={"prompts": ["a"]})
        wait_for(lambda: held.num_batches == 1)
        waiting = pool.submit(client.post, "/v1/generate", json={"prompts": ["a", "a"]})
        wait_for(lambda: len(served.service.batcher) == 2)
        served.server.should_exit = True
        wait_for(lambda: not served.server.servers[0].is_serving())
        held.may_go.set()
        assert begun.result().status_code == waiting.result().status_code == 200


def test_a_batch_that_fails_does_not_take_others_along(student, tmp_path) -> None:
    class Failing(Slow):
        def make(self, rows, num_steps=None, guidance=1.0, wanted=lambda: True):
            if any(row.prompt == "red" for row in rows):
                raise RuntimeError("out of memory")
            return self.inner.make(rows, num_steps, guidance, wanted)

    service = Service(None, Limits(), ServedLog(tmp_path, 0.0), window_s=0.5)
    service.live._served = Served(Failing(student), "failing", 1, "0" * 64)  # type: ignore[arg-type]
    with running(service) as served, ThreadPoolExecutor(3) as pool, served.client() as client:
        answers = list(
            pool.map(
                lambda p: client.post("/v1/generate", json={"prompts": [p]}), ["a", "red", "a"]
            )
        )
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert said(answers[1]) == "the model failed on this request; the service's log says why"


def test_samples_are_kept_when_asked_for(student_folder, tmp_path) -> None:
    for pictures in (False, True):
        log = ServedLog(tmp_path / str(pictures), 1.0, pictures=pictures)
        service = Service(FolderSource(student_folder, "cpu"), Limits(), log)
        service.live.look()
        with running(service) as served, served.client() as client:
            made = client.post("/v1/generate", json={"prompts": ["a circle", "red"], "steps": 1})
            client.post("/v1/edit", json={"prompts": ["add a"], "images": [png_base64(RED)]})
            client.post("/v1/generate", json={"prompts": ["a"], "steps": 999})
        rows = list(read_served(tmp_path / str(pictures)))
        assert [(r.prompt, r.is_edit, r.steps) for r in rows] == [
            ("a circle", False, 1),
            ("red", False, 1),
            ("add a", True, 2),
        ]
        if pictures:
            assert base64.b64decode(rows[0].image) == files(made)[0]
            assert rows[2].source is not None
        else:
            assert all(row.image is None and row.source is None for row in rows)


def test_a_new_model_takes_over_while_requests_run(student_folder, tmp_path) -> None:
    """No request is lost, and each is the work of one of the two, whole."""
    other = write_student(tmp_path / "other", seed=2)

    class Switch:
        folder = student_folder

        def newest(self) -> str:
            return str(self.folder)

        def open(self) -> Served:
            return FolderSource(self.folder, "cpu").open()

    source = Switch()
    service = Service(source, Limits(), ServedLog(tmp_path / "log", 0.0), poll_s=0.05)
    expected = {
        name: alone(FolderSource(folder, "cpu").open().student, ["a red circle"], seed=3)
        for name, folder in (("student/0", student_folder), ("other/0", other))
    }
    assert expected["student/0"] != expected["other/0"]
    seen, problems, end = [], [], threading.Event()

    def ask() -> None:
        with served.client() as client:
            while not end.is_set():
                answer = client.post("/v1/generate", json={"prompts": ["a red circle"], "seed": 3})
                name = answer.headers.get("x-danceflow-model")
                seen.append(name)
                if answer.status_code != 200 or files(answer) != expected[name]:
                    problems.append(answer)

    with running(service) as served, ThreadPoolExecutor(3) as pool:
        wait_for(lambda: served.client().get("/readyz").status_code == 200)
        asking = [pool.submit(ask) for _ in range(3)]
        wait_for(lambda: len(seen) > 5)
        source.folder = tmp_path / "nowhere"  # a model that is not there: the present one stays
        wait_for(lambda: served.metric("danceflow_model_failures_total") > 0)
        source.folder = other
        wait_for(lambda: seen[-1] == "other/0")
        count = len(seen)
        wait_for(lambda: len(seen) > count + 5)
        end.set()
        for job in asking:
            job.result()
        assert served.metric("danceflow_model_loads_total") == 2
    assert problems == []
    first = seen.index("other/0")
    assert {"student/0"} == set(seen[:first])


def test_until_a_model_is_there_it_is_not_ready(tmp_path) -> None:
    source = FolderSource(tmp_path / "student", "cpu")
    service = Service(source, Limits(), ServedLog(tmp_path / "log", 0.0), poll_s=0.05)
    with running(service) as served, served.client() as client:
        wait_for(lambda: "there is no student here" in client.get("/readyz").text)
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        refused = client.post("/v1/generate", json={"prompts": ["a"]})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        write_student(tmp_path / "student")
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/generate", json={"prompts": ["a"]}).status_code == 200


def test_a_model_that_makes_nothing_does_not_take_over(student_folder) -> None:
    class Broken(FolderSource):
        def open(self) -> Served:
            served = super().open()
            served.student.__dict__["together"] = 0
            return served

    failures = []
    live = Live(Broken(student_folder, "cpu"), 0.02, lambda served: None,
                lambda: failures.append(time.monotonic()))  # fmt: skip
    assert live.is_loading
    live.start()
    wait_for(lambda: len(failures) >= 2)  # it is tried again
    live.stop()
    assert live.served is None
    assert live.problem
    assert not live.is_loading


def test_a_first_look_is_over_when_it_served_or_failed_whatever_it_says(student_folder) -> None:
    class Away(FolderSource):
        def newest(self) -> str:
            raise TrackingError(live.problem)

    live = Live(Away(student_folder, "cpu"), 60.0, lambda served: None, lambda: None)
    before = live.problem
    live.start()
    wait_for(lambda: not live.is_loading)
    live.stop()
    assert live.problem == before
    served = Live(FolderSource(student_folder, "cpu"), 60.0, lambda served: None, lambda: None)
    served.look()
    assert (served.is_loading, served.problem) == (False, "")


# ---------------------------------------------------------------------------------------------
# What else is told


def test_notes_are_told_without_a_picture(served) -> None:
    with served.client() as client:
        before = served.metric("danceflow_batch_rows_count")
        asked = {"prompts": ["a red unicorn", "a red circle"], "edits": True}
        notes = client.post("/v1/notes", json=asked).json()["notes"]
        assert "'unicorn'" in notes[0][0]
        assert notes[1] == []
        assert client.post("/v1/notes", json={"prompts": []}).status_code == 422
        assert client.post("/v1/notes", json={"prompts": [" "]}).status_code == 422
    assert served.metric("danceflow_batch_rows_count") == before


def test_a_named_request_is_followed_while_it_is_worked_on(served) -> None:
    name = "a-name-of-this-test"
    seen = []
    asked = {"prompts": ["a red circle"] * 6, "steps": 20}
    with served.client() as client, served.client() as other, ThreadPoolExecutor(1) as pool:
        work = pool.submit(
            client.post, "/v1/generate", json=asked, headers={"X-Danceflow-Request": name}
        )
        while not work.done():
            answer = other.get(f"/v1/progress/{name}")
            if answer.status_code == 200:
                seen.append((answer.json()["begun"], answer.json()["steps"]))
        assert work.result().status_code == 200
        over = other.get(f"/v1/progress/{name}")
    assert (over.status_code, said(over)) == (404, "no request of this name is worked on now")
    assert seen
    assert seen == sorted(seen)
    assert {steps for _, steps in seen} == {120}

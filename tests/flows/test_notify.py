import base64
import hashlib
import hmac
import json
import socket
from collections.abc import Iterator

import pytest
from hook_server import Hooks, hook_server

from danceflow.params.sections import NotifyParams
from flows import notify
from flows.notify import News, tell

NEWS = News("promoted", "student", 3, "promote: version 3 is the champion", {"reason": "hands"})
SECRET = "a-secret-of-the-hook"  # planted: it may be seen nowhere


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooks]:
    monkeypatch.setattr(notify, "_WAITS_S", (0.01, 0.01))
    with hook_server() as found:
        yield found


def section(*hooks: dict, blocks: tuple[str, ...] = ()) -> NotifyParams:
    usual = {"secret_variable": None, "secret_block": None, "auth": "none"}
    data = {"blocks": blocks, "webhooks": [{**usual, **hook} for hook in hooks]}
    return NotifyParams.model_validate_json(json.dumps(data))


def test_an_address_is_told_as_json(hooks, tmp_path, caplog):
    tell(NEWS, section({"url": f"{hooks.url}/hook"}), tmp_path)
    ((path, headers, body),) = hooks.requests
    assert path == "/hook"
    assert headers["content-type"] == "application/json"
    assert {"webhook-id", "webhook-timestamp"} <= headers.keys()
    assert not {"authorization", "webhook-signature"} & headers.keys()
    told = json.loads(body)
    assert told["type"] == "student.promoted"
    assert told["data"] == {
        "model": "student",
        "version": 3,
        "text": "promote: version 3 is the champion",
        "reason": "hands",
    }
    assert not caplog.records


@pytest.mark.parametrize("form", ["plain", "whsec_"])
@pytest.mark.parametrize("auth", ["signature", "bearer", "both"])
def test_who_tells_can_be_checked(hooks, tmp_path, monkeypatch, caplog, auth, form):
    key = SECRET.encode()
    secret = SECRET if form == "plain" else form + base64.b64encode(key).decode()
    monkeypatch.setenv("HOOK_SECRET", secret)
    hook = {"url": f"{hooks.url}/", "secret_variable": "HOOK_SECRET", "auth": auth}
    tell(NEWS, section(hook), tmp_path)
    ((_, headers, body),) = hooks.requests
    assert headers.get("authorization") == (None if auth == "signature" else f"Bearer {secret}")
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers.get("webhook-signature") == (None if auth == "bearer" else f"v1,{digest}")
    assert not caplog.records


@pytest.mark.parametrize(
    ("statuses", "num_requests", "said"),
    [
        ([503, 500, 204], 3, ""),
        ([500], 3, "HTTP 500"),
        ([404], 1, "HTTP 404"),
        ([307], 1, "HTTP 307"),  # and nobody else is told
        ([302], 1, "HTTP 302"),
    ],
)
def test_a_failure_is_a_warning(hooks, tmp_path, monkeypatch, caplog, statuses, num_requests, said):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    hooks.statuses = statuses
    url = f"{hooks.url}/services/secret-path"
    tell(NEWS, section({"url": url, "secret_variable": "HOOK_SECRET", "auth": "both"}), tmp_path)
    assert [path for path, _, _ in hooks.requests] == ["/services/secret-path"] * num_requests
    assert [record.levelname for record in caplog.records] == ["WARNING"] * bool(said)
    assert said in caplog.text
    assert SECRET not in caplog.text
    assert "secret-path" not in caplog.text


@pytest.mark.parametrize("value", [None, " ", "two words", "line\nbreak", "whsec_!", "é"])
def test_a_secret_that_is_none_is_told_without_it(hooks, tmp_path, monkeypatch, caplog, value):
    monkeypatch.delenv("HOOK_SECRET", raising=False)
    if value is not None:
        monkeypatch.setenv("HOOK_SECRET", value)
    hook = {"url": hooks.url, "secret_variable": "HOOK_SECRET", "auth": "both"}
    tell(NEWS, section(hook, {"url": f"{hooks.url}/other"}), tmp_path)
    (record,) = caplog.records
    assert "was not told" in record.getMessage()
    assert value is None or value.strip() == "" or value not in record.getMessage()
    assert [path for path, _, _ in hooks.requests] == ["/other"]


def test_who_is_not_there_or_never_answers_stops_nobody(hooks, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(notify, "_PATIENCE_S", 0.5)
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        closed.bind(("127.0.0.1", 0))
        urls = [f"http://127.0.0.1:{place.getsockname()[1]}/" for place in (silent, closed)]
        tell(NEWS, section(*({"url": url} for url in urls), {"url": hooks.url}), tmp_path)
    assert len(hooks.requests) == 1
    said = sorted(record.getMessage().split(": ", 1)[1] for record in caplog.records)
    assert len(said) == 2
    assert any("does not answer" in text for text in said)
    assert any("was not told: Connection refused" in text for text in said)


@pytest.mark.pipeline
def test_blocks_of_prefect_are_told_and_hold_secrets(prefect_server, hooks, tmp_path, caplog):
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.blocks.system import Secret

    block = CustomWebhookNotificationBlock(
        name="team",
        url=f"{hooks.url}/block",
        json_data={"title": "{{subject}}", "words": "{{body}}", "token": "{{token}}"},
        secrets={"token": SECRET},
    )
    block.save("team", overwrite=True)
    Secret(value=SECRET).save("hook", overwrite=True)
    hook = {"url": f"{hooks.url}/hook", "secret_block": "hook", "auth": "bearer"}
    gone = {"url": f"{hooks.url}/gone", "secret_block": "gone", "auth": "bearer"}
    slugs = ("custom-webhook/team", "custom-webhook/nobody", "secret/hook")
    tell(NEWS, section(hook, gone, blocks=slugs), tmp_path)
    told = {path: (headers, json.loads(body)) for path, headers, body in hooks.requests}
    assert told.keys() == {"/block", "/hook"}
    assert told["/block"][1] == {
        "title": "student: promoted (version 3)",
        "words": "promote: version 3 is the champion",
        "token": SECRET,
    }
    assert told["/hook"][0]["authorization"] == f"Bearer {SECRET}"
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "block custom-webhook/nobody was not told: there is no such block" in said
    assert "block secret/hook was not told: the block sends no notifications" in said
    assert "Prefect's block secret/gone is not there" in said
    assert SECRET not in said

    hooks.statuses = [500]
    caplog.clear()
    tell(NEWS, section(blocks=slugs[:1]), tmp_path)
    assert "custom-webhook/team was not told: HTTPStatusError (its words may hold" in caplog.text
    assert f"{hooks.url}/block" not in caplog.text

"""Who may come in: no page of another site, and at an open address only who has the token."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from studio_server import Running, running_studio

from danceflow.service.token import Token

SECRET = "a-token-of-the-studio-0123456789"


@pytest.fixture(scope="module")
def open_studio(
    scenes_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    tree = tmp_path_factory.mktemp("open-tree")
    with running_studio(tree, scenes_student, token=Token(SECRET)) as found:
        yield found


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},  # another program's page on this machine
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
    ],
)
def test_pages_of_other_sites_change_nothing(studio: Running, headers: dict[str, str]) -> None:
    with studio.client(headers=headers) as client:
        for path in ("/make", "/bring", "/undo", "/node/x/pin", "/cancel/x"):
            answer = client.post(path, data={"prompt": "a ring", "model": "student"})
            assert answer.status_code == 403, path
            assert "pages of other sites" in answer.json()["error"]
    assert studio.studio.tree.nodes(archived=True) == []


def test_a_name_that_points_here_reads_nothing(studio: Running) -> None:
    with studio.client(headers={"Host": "evil.example"}) as client:
        assert client.get("/").status_code == 403


def test_every_answer_keeps_a_page_to_itself(studio: Running) -> None:
    with studio.client() as client:
        for path in ("/", "/part/queue", "/static/studio.js", "/picture/none.png", "/nowhere"):
            headers = client.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-resource-policy"] == "same-origin"
        assert client.get("/").headers["cache-control"] == "no-store"
        cookie = client.get("/").headers.get("set-cookie", "HttpOnly SameSite=strict")
        assert "HttpOnly" in cookie


def test_the_model_service_answers_beside_the_pages(studio: Running) -> None:
    with studio.client() as client:
        assert client.get("/readyz").json()["status"] == "ready"
        asked = {"prompts": ["a red unicorn"]}
        assert client.post("/v1/notes", json=asked).json() == {
            "notes": [["the prompt has words that the model does not know: 'unicorn'"]]
        }


def test_at_an_open_address_the_token_is_asked_for(open_studio: Running) -> None:
    with open_studio.client() as client:
        page = client.get("/", headers={"Accept": "text/html"})
        assert (page.status_code, page.headers["location"]) == (303, "/login")
        assert client.get("/part/tree").status_code == 401
        assert client.get("/v1/model").status_code == 401
        assert 'type="password"' in client.get("/login").text
        wrong = client.post("/login", data={"token": "b" * 32})
        assert wrong.status_code == 401
        assert "This is not the token." in wrong.text
        right = client.post("/login", data={"token": SECRET})
        assert (right.status_code, right.headers["location"]) == (303, "/")
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert SECRET not in cookie
        assert client.get("/").status_code == 200  # httpx kept the cookie
    with open_studio.client(cookies={"danceflow_session": "made-up"}) as client:
        assert client.get("/part/tree").status_code == 401
    with open_studio.client(headers={"Authorization": f"Bearer {SECRET}"}) as client:
        assert client.get("/part/tree").status_code == 200

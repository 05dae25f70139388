"""Who may ask."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from selfmoe_ray.errors import UserError
from selfmoe_ray.serving.http.auth import BearerKeys, read_keys


@pytest.fixture
def client() -> TestClient:
    return TestClient(BearerKeys(PlainTextResponse("fine"), ["first", "second"], ["/health"]))


@pytest.mark.parametrize("header", ["Bearer first", "bearer second", "Bearer  first "])
def test_an_accepted_key_passes(client: TestClient, header: str) -> None:
    assert client.get("/v1/models", headers={"Authorization": header}).text == "fine"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer third", "first", "Basic first", "Bearer fïrst"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/health/", "/nowhere", "//health"])
def test_anything_else_is_a_401(client: TestClient, header: str | None, path: str) -> None:
    headers = {"Authorization": header.encode()} if header is not None else {}
    answer = client.get(path, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == 401


def test_health_and_preflight_need_no_key(client: TestClient) -> None:
    assert client.get("/health").text == "fine"
    assert client.options("/v1/models").text == "fine"


def test_keys_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "one\n\n two \n")
    (tmp_path / "keys").write_text("three\n")
    assert read_keys("KEYS", None) == ("one", "two")
    assert read_keys(None, str(tmp_path / "keys")) == ("three",)
    assert read_keys(None, None) == ()


def test_a_named_source_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYS", raising=False)
    with pytest.raises(UserError, match="environment variable KEYS holds no key"):
        read_keys("KEYS", None)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_keys(None, str(tmp_path / "keys"))
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(UserError, match="holds no key"):
        read_keys(None, str(tmp_path / "keys"))

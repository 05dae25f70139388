"""What one request may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from selfmoe_ray.serving.config import RequestLimits
from selfmoe_ray.serving.http.errors import Refused
from selfmoe_ray.serving.http.limits import BodyLimit, check_request

LIMITS = RequestLimits(max_tokens=10, n=2, prompts=2)


def request(**fields: Any) -> Any:
    return SimpleNamespace(**{"n": 1, "prompt": "a", "use_beam_search": False, "vllm_xargs": None, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 10},
        {"max_tokens": None, "n": None},
        {"n": 2, "prompt": ["a", "b"]},
        {"prompt": list(range(100))},
        {"vllm_xargs": {"mixse_gate": "base", "mixse_routing": "mean"}},
    ],
)
def test_within_the_limits(fields: dict[str, Any]) -> None:
    check_request(request(**fields), LIMITS)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"max_tokens": 11}, "max_tokens", "max_tokens is 11; this server allows at most 10"),
        ({"max_completion_tokens": 11}, "max_completion_tokens", "at most 10"),
        ({"n": 3}, "n", "n is 3; this server allows at most 2"),
        ({"prompt": ["a"] * 3}, "prompt", "prompt is 3 prompts; this server allows at most 2"),
        ({"prompt": [[1], [2], [3]]}, "prompt", "3 prompts"),
        ({"use_beam_search": True}, "use_beam_search", "not served"),
        ({"vllm_xargs": {"mixse_gates": "base"}}, "vllm_xargs", "unknown mixse_gates; known: mixse_gate"),
    ],
)
def test_beyond_the_limits(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        check_request(request(**fields), LIMITS)
    assert caught.value.param == param and caught.value.status == 400


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(body)(scope, receive, send)


@pytest.fixture
def client() -> TestClient:
    return TestClient(BodyLimit(_echo, max_bytes=8))


def _pieces(*pieces: bytes) -> Iterator[bytes]:
    yield from pieces


@pytest.mark.parametrize("body", [b"", b"12345678"])
def test_a_body_within_the_limit_arrives_whole(client: TestClient, body: bytes) -> None:
    assert client.post("/", content=body).content == body
    assert client.post("/", content=_pieces(body[:3], body[3:])).content == body


def test_a_longer_body_is_a_413_declared_or_not(client: TestClient) -> None:
    for content in (b"123456789", _pieces(b"12345", b"6789")):
        answer = client.post("/", content=content)
        assert answer.status_code == 413
        assert "over 8 bytes" in answer.json()["error"]["message"]

"""Whatever an application does, what leaves is an OpenAI error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from selfmoe_ray.serving.http.errors import OpenAIErrors, error_object, error_response


def get(app: ASGIApp) -> Any:
    return TestClient(OpenAIErrors(app), raise_server_exceptions=False).get("/v1/models")


def test_errors_have_openais_shape() -> None:
    assert error_object(404, "no such model", "model") == {
        "error": {"message": "no such model", "type": "NotFoundError", "param": "model", "code": 404}
    }
    assert error_object(500, "")["error"]["type"] == "InternalServerError"


@pytest.mark.parametrize("status", [200, 204, 302])
def test_what_is_no_error_passes_untouched(status: int) -> None:
    answer = get(PlainTextResponse("body" if status == 200 else "", status, {"x-kept": "1"}))
    assert answer.status_code == status and answer.headers["x-kept"] == "1"
    assert answer.text == ("body" if status == 200 else "")


def test_an_error_object_keeps_its_message() -> None:
    answer = get(error_response(400, "n is 9; this server allows at most 8", "n"))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "n is 9; this server allows at most 8"


@pytest.mark.parametrize("response", [PlainTextResponse("Not Found", 404), JSONResponse({"detail": "x"}, 404)])
def test_other_refusals_become_error_objects(response: ASGIApp) -> None:
    answer = get(response)
    assert answer.status_code == 404 and answer.json() == error_object(404, "Not Found")


@pytest.mark.parametrize("status", [500, 501, 503])
def test_what_a_failure_says_stays_inside(status: int) -> None:
    secret = "Traceback: /srv/app.py, pid 4711, actor 1f2e3d"
    answer = get(JSONResponse(error_object(status, secret), status))
    assert answer.status_code == status and secret not in answer.text
    assert answer.json()["error"]["code"] == status
    assert ("retry-after" in answer.headers) == (status == 503)


def test_an_own_retry_after_is_kept() -> None:
    answer = get(PlainTextResponse("Request dropped due to backpressure", 503, {"Retry-After": "7"}))
    assert answer.headers.get_list("retry-after") == ["7"]
    assert "backpressure" not in answer.text


def test_an_application_that_raises_is_a_500() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("/srv/secret.py")

    answer = get(broken)
    assert answer.status_code == 500 and "secret" not in answer.text and answer.json()["error"]["code"] == 500


def test_an_application_without_an_answer_is_a_503() -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    answer = get(silent)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "2"


@pytest.mark.parametrize("raises", [False, True])
def test_a_stream_that_is_cut_ends_with_an_error_event(raises: bool) -> None:
    async def cut(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'data: {"id": "1"}\n\n', "more_body": True})
        if raises:
            raise RuntimeError("the replica died")

    events = get(cut).text.strip().split("\n\n")
    assert events[0] == 'data: {"id": "1"}' and len(events) == 2
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == (500 if raises else 503)


def test_a_whole_stream_is_left_alone() -> None:
    async def events() -> Any:
        yield "data: 1\n\n"
        yield "data: [DONE]\n\n"

    assert get(StreamingResponse(events(), media_type="text/event-stream")).text == "data: 1\n\ndata: [DONE]\n\n"

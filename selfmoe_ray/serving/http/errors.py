"""Every error that leaves is an OpenAI error object, without traces, paths or process ids."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2
UNAVAILABLE = "The server is busy or restarting; try again."
INTERNAL = "The server made a mistake; it has been logged."
MAX_ERROR_BYTES = 64 * 1024


class Refused(Exception):
    """A request that is answered with an error: HTTP status, message for the caller, and the field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


def error_object(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error: `{"error": {"message", "type", "param", "code"}}`."""
    kind = "".join(word.capitalize() for word in HTTPStatus(status).phrase.replace("-", " ").split()) + "Error"
    return {"error": {"message": message, "type": kind.replace("ErrorError", "Error"), "param": param, "code": status}}


def error_response(status: int, message: str, param: str | None = None) -> JSONResponse:
    """An error as a response."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    return JSONResponse(error_object(status, message, param), status, headers)


class OpenAIErrors:
    """ASGI middleware, outermost: what the application does not answer well is answered here.

    An error response without an OpenAI error object gets one; a 5xx gets a message of ours in place of
    its own, which goes to the log. An application that raises, or ends without an answer, is a 503 or a
    500; an event stream that it leaves open ends with an error event.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        try:
            await self.app(scope, receive, answer.send)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await answer.finish(500, INTERNAL)
        else:
            await answer.finish(503, UNAVAILABLE)


class _Answer:
    """One response on its way out; an error's head waits for its body."""

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self.scope = scope
        self.receive = receive
        self.out = send
        self.start: Message | None = None
        self.error_body: bytearray | None = None
        self.complete = False
        self.gone = False

    async def send(self, message: Message) -> None:
        """Pass a message on; an error waits until its body can be replaced."""
        if message["type"] == "http.response.start":
            self.start = message
            if message["status"] >= 400:
                self.error_body = bytearray()
                return
        elif message["type"] == "http.response.body":
            last = not message.get("more_body", False)
            if self.error_body is not None:
                if len(self.error_body) < MAX_ERROR_BYTES:
                    self.error_body += message.get("body", b"")
                if last:
                    await self._send_error()
                return
            self.complete = last
        await self.out(message)

    async def _send_error(self) -> None:
        assert self.start is not None and self.error_body is not None
        status, body = self.start["status"], bytes(self.error_body)
        self.complete = True
        if status >= 500:
            logger.error("%s %s: %d %s", self.scope["method"], self.scope["path"], status, body[:1000])
            response = error_response(status, UNAVAILABLE if status == 503 else INTERNAL)
        elif _is_error_object(body):
            response = JSONResponse(json.loads(body), status)
        else:
            response = error_response(status, HTTPStatus(status).phrase)
        kept = [pair for pair in self.start["headers"] if pair[0].lower() not in (b"content-type", b"content-length")]
        given = {name.lower() for name, _ in kept}
        response.raw_headers = [pair for pair in response.raw_headers if pair[0] not in given] + kept
        await response(self.scope, self.receive, self.out)

    async def finish(self, status: int, message: str) -> None:
        """The application is done; mend what it left undone."""
        if self.complete:
            return
        if self.start is None or self.error_body is not None:
            await error_response(status, message)(self.scope, self.receive, self.out)
        elif _is_event_stream(self.start):
            event = f"data: {json.dumps(error_object(status, message))}\n\n"
            await self.out({"type": "http.response.body", "body": event.encode(), "more_body": False})


def _is_error_object(body: bytes) -> bool:
    try:
        value = json.loads(body)
    except ValueError:
        return False
    error = value.get("error") if isinstance(value, dict) else None
    return isinstance(error, dict) and isinstance(error.get("message"), str)


def _is_event_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", [])
    )

"""What one request may ask for."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfmoe_ray.serving.config import RequestLimits
from selfmoe_ray.serving.http.errors import Refused, error_response

XARGS = ("mixse_gate", "mixse_routing")


def check_request(request: Any, limits: RequestLimits) -> None:
    """Raises Refused (400) where a completion or chat request asks for more than `limits` or for what is not served.

    request: vLLM's CompletionRequest or ChatCompletionRequest.
    """
    for field in ("max_tokens", "max_completion_tokens"):
        _at_most(getattr(request, field, None), limits.max_tokens, field)
    _at_most(request.n, limits.n, "n")
    prompt = getattr(request, "prompt", None)
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        _at_most(len(prompt), limits.prompts, "prompt", "prompts")
    if request.use_beam_search:
        raise Refused(400, "use_beam_search is not served; use n and temperature", "use_beam_search")
    unknown = sorted(set(request.vllm_xargs or {}) - set(XARGS))
    if unknown:
        raise Refused(400, f"vllm_xargs: unknown {', '.join(unknown)}; known: {', '.join(XARGS)}", "vllm_xargs")


def _at_most(value: int | None, limit: int, field: str, what: str = "") -> None:
    if value is not None and value > limit:
        raise Refused(400, f"{field} is {value}{what and f' {what}'}; this server allows at most {limit}", field)


class BodyLimit:
    """ASGI middleware: a body over `max_bytes` is a 413, known by its declared length or while it is read."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        chunks, size = [], 0
        if declared.isdigit() and int(declared) > self.max_bytes:
            await self._refuse(scope, receive, send)
            return
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > self.max_bytes:
                await self._refuse(scope, receive, send)
                return
        body: Message | None = {"type": "http.request", "body": b"".join(chunks), "more_body": False}

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message, body = body, None
            return message

        await self.app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = error_response(413, f"The body is over {self.max_bytes} bytes, the most this server takes.")
        await response(scope, receive, send)

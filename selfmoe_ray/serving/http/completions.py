"""/v1/completions and /v1/chat/completions: vLLM's handlers behind our names and limits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation
from vllm.v1.engine.exceptions import EngineDeadError

from selfmoe_ray.engine import patches
from selfmoe_ray.serving.config import RequestLimits
from selfmoe_ray.serving.http.errors import UNAVAILABLE, Refused
from selfmoe_ray.serving.http.limits import check_request
from selfmoe_ray.serving.http.names import ModelNames
from selfmoe_ray.serving.http.records import RoutingRecords

DONE = "data: [DONE]\n\n"
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (400, 401, 404, 413, 503)}

_answering_model: ContextVar[str] = ContextVar("answering_model")


def completion_routes(names: ModelNames, limits: RequestLimits, records: RoutingRecords) -> APIRouter:
    """The two generating endpoints."""
    router = APIRouter(dependencies=[Depends(validate_json_request)])

    @router.post("/v1/completions", responses=ERRORS)
    @with_cancellation
    async def completions(request: CompletionRequest, raw_request: Request) -> Response:
        handler = raw_request.app.state.openai_serving_completion
        return await answer(handler.create_completion, request, raw_request)

    @router.post("/v1/chat/completions", responses=ERRORS)
    @with_cancellation
    async def chat_completions(request: ChatCompletionRequest, raw_request: Request) -> Response:
        handler = raw_request.app.state.openai_serving_chat
        return await answer(handler.create_chat_completion, request, raw_request)

    async def answer(create: Callable[..., Awaitable[Any]], request: Any, raw_request: Request) -> Response:
        """vLLM's answer under the gate that the request's model names, with the routing it asked for."""
        check_request(request, limits)
        names.choose_gate(request)
        _answering_model.set(request.model)
        wants_routing = bool((request.vllm_xargs or {}).get("mixse_routing"))
        try:
            result = await create(request, raw_request)
        except EngineDeadError:
            raise Refused(503, UNAVAILABLE) from None
        if isinstance(result, ErrorResponse):
            return JSONResponse(result.model_dump(), result.error.code)
        if request.stream:
            events = with_routing(result, records) if wants_routing else result
            return StreamingResponse(events, media_type="text/event-stream")
        body = result.model_dump()
        if wants_routing:
            body["mixse_routing"] = await records.take(result.id)
        return JSONResponse(body)

    return router


async def with_routing(events: AsyncIterator[str], records: RoutingRecords) -> AsyncIterator[str]:
    """A stream whose last chunk before `[DONE]` carries the routing."""
    last_chunk: dict[str, Any] = {}
    async for event in events:
        if event == DONE and last_chunk:
            routing = await records.take(last_chunk["id"])
            chunk = {key: last_chunk[key] for key in ("id", "object", "created", "model")}
            yield f"data: {json.dumps({**chunk, 'choices': [], 'mixse_routing': routing})}\n\n"
        elif not last_chunk and event.startswith("data: {"):
            first = json.loads(event.removeprefix("data: "))
            last_chunk = first if "id" in first else {}
        yield event


def name_answers_after_requests(models: Any) -> None:
    """Let vLLM's responses carry the model name that was asked for; it would give the first one served."""
    patches.apply(patches.ANSWERS_NAMED, lambda *_: _answering_model.get(), on=models)

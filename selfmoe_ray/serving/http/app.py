"""The whole HTTP surface of one mixture, and nothing of vLLM's beyond it."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import selfmoe_ray
from selfmoe_ray.engine import patches
from selfmoe_ray.serving.config import ServeArgs
from selfmoe_ray.serving.http.auth import BearerKeys
from selfmoe_ray.serving.http.completions import ERRORS, completion_routes, name_answers_after_requests
from selfmoe_ray.serving.http.errors import OpenAIErrors, Refused, error_response
from selfmoe_ray.serving.http.limits import BodyLimit
from selfmoe_ray.serving.http.playground import mount_playground
from selfmoe_ray.serving.http.records import RoutingRecords
from selfmoe_ray.serving.metrics import routing_metrics
from selfmoe_ray.serving.server import RunningEngine

VLLM_PATHS = ("/health", "/tokenize", "/detokenize")


async def build_app(engine: RunningEngine, args: ServeArgs, keys: tuple[str, ...], records: RoutingRecords) -> ASGIApp:
    """The OpenAI API, the mixture's own endpoints, health, metrics and the playground.

    keys: accepted API keys; without any, none is asked for.
    """
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.utils.server_utils import lifespan
    from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

    app = FastAPI(title="MiXSE", version=selfmoe_ray.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.args = engine.vllm_args
    await init_app_state(engine.client, app.state, engine.vllm_args, await engine.client.get_supported_tasks())
    name_answers_after_requests(app.state.openai_serving_models)
    init_exception_handler(app)
    app.add_exception_handler(Refused, _refuse)
    app.include_router(completion_routes(engine.names, args.limits, records))
    _add_own_routes(app, engine, records)
    _add_vllm_routes(app)
    open_paths = {"/health", *mount_playground(app)}
    app.add_middleware(BodyLimit, max_bytes=args.limits.body_bytes)
    if keys:
        app.add_middleware(BearerKeys, keys=keys, open_paths=open_paths)
    if args.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=args.cors_origins, allow_methods=["*"], allow_headers=["*"])
    return OpenAIErrors(app)


async def _refuse(request: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    return error_response(refused.status, refused.message, refused.param)


def _add_vllm_routes(app: FastAPI) -> None:
    """The few of vLLM's routes that are served as they are, and its counting of HTTP requests."""
    from vllm.entrypoints.serve.instrumentator import metrics

    for router in map(patches.checked, (patches.HEALTH_ROUTES, patches.TOKENIZE_ROUTES)):
        app.router.routes.extend(route for route in router.routes if getattr(route, "path", "") in VLLM_PATHS)
    metrics.attach_router(app)


def _add_own_routes(app: FastAPI, engine: RunningEngine, records: RoutingRecords) -> None:
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    names, spec = engine.names, engine.spec
    config = engine.client.model_config
    cards = {card["id"]: card for card in names.cards(int(time.time()), config.max_model_len)}

    # Before vLLM's own /metrics, whose text it extends.
    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        routing = await routing_metrics(engine.client, names.name)
        return Response(generate_latest(get_prometheus_registry()) + routing.encode(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": list(cards.values())}

    @app.get("/v1/models/{model:path}", responses=ERRORS)
    async def model(model: str) -> dict[str, object]:
        if model not in cards:
            raise Refused(404, f"The model {model!r} does not exist; known: {', '.join(cards)}", "model")
        return cards[model]

    @app.get("/v1/mixse")
    async def mixse() -> dict[str, object]:
        return {
            "model": names.name,
            "experts": list(spec.experts),
            "num_experts_per_tok": spec.num_experts_per_tok,
            "num_layers": config.hf_text_config.num_hidden_layers,
            "models": {"base": names.base, "experts": {expert: names.expert(expert) for expert in spec.experts}},
        }

    @app.get("/v1/mixse/routing/{response_id}", responses=ERRORS)
    async def routing(response_id: str) -> dict[str, object]:
        found = await records.find(response_id)
        if found is None:
            raise Refused(404, f"No routing of {response_id!r}: it was not asked for, or it is too old.")
        return found

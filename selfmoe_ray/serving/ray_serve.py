"""The mixture as a Ray Serve application: `import_path: selfmoe_ray.serving.ray_serve:build`."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from selfmoe_ray.serving.config import ServeArgs, parse_serve_args
from selfmoe_ray.serving.engine import running_engine, watch
from selfmoe_ray.serving.http.app import build_app
from selfmoe_ray.serving.http.auth import read_keys
from selfmoe_ray.serving.http.errors import RETRY_AFTER_SECONDS
from selfmoe_ray.serving.http.records import RoutingRecords


@serve.deployment(
    max_ongoing_requests=64,
    max_queued_requests=128,
    backpressure_config={"status_code": 503, "retry_after_s": RETRY_AFTER_SECONDS},
    health_check_period_s=5,
    graceful_shutdown_timeout_s=120,
)
@serve.ingress()
class Mixse:
    """One replica: a vLLM engine and its HTTP surface."""

    async def __init__(self, args: ServeArgs):
        self.args = args
        self.keys = read_keys(args.api_key_env, args.api_key_file)
        self.resources = AsyncExitStack()
        self.engine = await self.resources.enter_async_context(running_engine(args))
        # Ray replaces a replica whose process ends; one whose engine is dead would only be found unhealthy.
        self.watch = asyncio.create_task(watch(self.engine.client, lambda: os._exit(1)))

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        return await build_app(self.engine, self.args, self.keys, RoutingRecords(self.engine.client))

    async def check_health(self) -> None:
        """Raises where the engine is dead."""
        await self.engine.client.check_health()

    async def __del__(self) -> None:
        self.watch.cancel()
        await self.resources.aclose()


def build(args: dict[str, Any]) -> Application:
    """The application that serve_configs/*.yaml name. Raises UserError for wrong `args`."""
    return Mixse.bind(parse_serve_args(args))

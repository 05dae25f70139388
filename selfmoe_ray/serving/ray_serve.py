"""The mixture as a Ray Serve application: `import_path: selfmoe_ray.serving.ray_serve:build`."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from selfmoe_ray.serving.config import ServeArgs, parse_serve_args
from selfmoe_ray.serving.cores import keep_off_computing_cores
from selfmoe_ray.serving.http.app import build_app
from selfmoe_ray.serving.http.auth import read_keys
from selfmoe_ray.serving.http.errors import RETRY_AFTER_SECONDS
from selfmoe_ray.serving.http.records import RecordStore, RoutingRecords
from selfmoe_ray.serving.server import RunningEngine, running_engine, watch

# What a config's `deployments` section may change.
DEPLOYMENT: dict[str, Any] = {
    "name": "Mixse",
    "max_ongoing_requests": 64,
    "max_queued_requests": 128,
    "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_AFTER_SECONDS},
    "health_check_period_s": 5,
    "graceful_shutdown_timeout_s": 120,
}


class Mixse:
    """One replica: a vLLM engine and its HTTP surface."""

    def __init__(self, args: ServeArgs, shared: DeploymentHandle):
        self.args = args
        self.shared = shared
        self.keys = read_keys(args.api_key_env, args.api_key_file)
        self.resources = AsyncExitStack()
        self.engine: RunningEngine | None = None
        self.watch: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        engine = self.engine = await self.resources.enter_async_context(running_engine(self.args))
        keep_off_computing_cores()
        # Ray replaces a replica whose process ends; one whose engine is dead would only be found unhealthy.
        self.watch = asyncio.create_task(watch(engine.client, lambda: os._exit(1)))
        return await build_app(engine, self.args, self.keys, SharedRecords(engine.client, self.shared))

    async def check_health(self) -> None:
        """Raises where the engine is dead."""
        if self.engine:
            await self.engine.client.check_health()

    async def __del__(self) -> None:
        if self.watch:
            self.watch.cancel()
        await self.resources.aclose()


class SharedRecords(RoutingRecords):
    """Routing that any replica can be asked for, whichever of them made it."""

    def __init__(self, client: Any, shared: DeploymentHandle):
        super().__init__(client)
        self.shared = shared

    async def take(self, response_id: str) -> dict[str, Any] | None:
        """See RoutingRecords."""
        routing = await super().take(response_id)
        if routing is not None:
            self.shared.put.remote(response_id, routing)
        return routing

    async def find(self, response_id: str) -> dict[str, Any] | None:
        """See RoutingRecords."""
        return await super().find(response_id) or await self.shared.get.remote(response_id)


def build(args: dict[str, Any]) -> Application:
    """The application that serve_configs/*.yaml name. Raises UserError for wrong `args`."""
    return application(parse_serve_args(args))


def application(args: ServeArgs, **options: Any) -> Application:
    """A mixture's deployments; options: of Serve, in place of `DEPLOYMENT`'s."""
    records = serve.deployment(RecordStore, ray_actor_options={"num_cpus": 0})
    return serve.deployment(**{**DEPLOYMENT, **options})(serve.ingress()(Mixse)).bind(args, records.bind())

"""The HTTP app of a mixture without Ray: `python http_server.py <ServeArgs as JSON> <port>`."""

from __future__ import annotations

import asyncio
import json
import sys

import uvicorn

from selfmoe_ray.serving.config import parse_serve_args
from selfmoe_ray.serving.http.app import build_app
from selfmoe_ray.serving.http.auth import read_keys
from selfmoe_ray.serving.http.records import RoutingRecords
from selfmoe_ray.serving.server import running_engine


async def main(settings: str, port: str) -> None:
    args = parse_serve_args(json.loads(settings))
    keys = read_keys(args.api_key_env, args.api_key_file)
    async with running_engine(args) as engine:
        app = await build_app(engine, args, keys, RoutingRecords(engine.client))
        await uvicorn.Server(uvicorn.Config(app, port=int(port), log_level="warning")).serve()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""What Ray Serve's HTTP proxy says by itself, put into OpenAI's words.

The proxy answers on its own where no replica does: a full queue, a replica that died with a request or
in the middle of a stream. Serve loads `middlewares` where
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=selfmoe_ray.serving.ray_proxy.middlewares is in the environment of
the Serve controller; serve_configs/*.yaml set it.
"""

from __future__ import annotations

from starlette.middleware import Middleware

from selfmoe_ray.serving.http.errors import OpenAIErrors


def middlewares() -> list[Middleware]:
    """Called once by each proxy."""
    return [Middleware(OpenAIErrors)]

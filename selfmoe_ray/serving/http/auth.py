"""API keys: read from the environment or a file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from selfmoe_ray.errors import UserError
from selfmoe_ray.serving.http.errors import error_response


def read_keys(env: str | None, file: str | None) -> tuple[str, ...]:
    """The accepted keys, one a line; () where no source is named.

    Raises UserError where the named source is missing or empty: a server that should ask for keys
    never runs without.
    """
    if env:
        text, where = os.environ.get(env, ""), f"api_key_env: the environment variable {env}"
    elif file:
        where = f"api_key_file: {file}"
        try:
            text = Path(file).read_text()
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error.strerror}") from None
    else:
        return ()
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise UserError(f"{where} holds no key; put at least one there, one a line")
    return keys


class BearerKeys:
    """ASGI middleware: `Authorization: Bearer <key>` with an accepted key, or 401.

    open_paths need no key. Preflight requests carry none by definition.
    """

    def __init__(self, app: ASGIApp, keys: Collection[str], open_paths: Collection[str]):
        self.app = app
        self.digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["type"] == "http" and scope["method"] != "OPTIONS" and scope["path"] not in self.open_paths
        if asks and not self._accepts(Headers(scope=scope).get("authorization", "")):
            response = error_response(401, "Give an accepted API key as `Authorization: Bearer <key>`.")
            response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _accepts(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        # Every key is compared, so that the time tells nothing about which one was near.
        matches = [hmac.compare_digest(digest, accepted) for accepted in self.digests]
        return scheme.lower() == "bearer" and any(matches)

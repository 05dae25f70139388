"""The playground's files at `/`."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parents[1] / "playground"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # The page and its scripts belong together; a browser asks whether they changed.
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def mount_playground(app: FastAPI) -> list[str]:
    """Serve the page below every other route; returns the paths of its files, which hold nothing to protect."""
    app.mount("/", _Files(directory=FOLDER, html=True))
    return ["/", *(f"/{file.relative_to(FOLDER).as_posix()}" for file in FOLDER.rglob("*") if file.is_file())]

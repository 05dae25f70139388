"""What happens during a run, as one stream for people (terminal) and machines (events.jsonl)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

# "8/48", so many of so many; ASCII, as a job's log may be read anywhere.
_COUNT = re.compile(r"(\d+)/(\d+)")
_BAR_WIDTH = 6


class Emit(Protocol):
    """How any stage reports progress: `emit("train", domain="math", step=3, loss=1.2)`.

    `kind` is the stage (generate, experts, router, measure, ...); the fields are JSON values.
    """

    def __call__(self, kind: str, **fields: Any) -> None: ...


def silent(kind: str, **fields: Any) -> None:
    """An Emit that drops everything."""


def to_all(emits: Sequence[Emit]) -> Emit:
    """One Emit for several."""

    def emit(kind: str, **fields: Any) -> None:
        for each in emits:
            each(kind, **fields)

    return emit


class EventLog:
    """An Emit that writes one JSON object a line and one readable line a piece."""

    def __init__(self, append: Callable[[str], None], show: Callable[[str], None] = print):
        self._append = append
        self._show = show
        self._start = time.monotonic()

    def __call__(self, kind: str, **fields: Any) -> None:
        """Record one event; `time` is Unix seconds."""
        self._append(json.dumps({"time": round(time.time(), 3), "kind": kind, **fields}) + "\n")
        self._show(render(time.monotonic() - self._start, kind, fields))


def render(elapsed: float, kind: str, fields: dict[str, Any]) -> str:
    """One terminal line: minutes:seconds, the stage, a message if any, then the fields, counts with a bar."""
    shown = " ".join(f"{key}={_short(value)}" for key, value in fields.items() if key != "message")
    message = fields.get("message", "")
    clock = f"{int(elapsed) // 60:3d}:{int(elapsed) % 60:02d}"
    return f"{clock}  {kind:<10} {message}{'  ' if message and shown else ''}{shown}"


def _short(value: Any) -> str:
    if isinstance(value, str) and (count := _COUNT.fullmatch(value)):
        return f"{_bar(int(count[1]), int(count[2]))}{value}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bar(done: int, total: int) -> str:
    filled = _BAR_WIDTH * done // total if total else 0
    return f"[{'#' * filled}{'-' * (_BAR_WIDTH - filled)}]"

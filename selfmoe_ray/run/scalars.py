"""The numbers in a run's events, as dashboards and experiment trackers want them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scalar:
    """A value of now. step: the optimizer step or wave that it belongs to, None where it has none."""

    name: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)
    step: int | None = None

    @property
    def path(self) -> str:
        """Name and labels in one, as trackers name a series."""
        return "/".join((self.name, *self.labels.values()))


def scalars(kind: str, fields: dict[str, Any]) -> Iterator[Scalar]:
    """What an event (see `events.Emit`) says in numbers; nothing for most."""
    message = fields.get("message")
    if message in ("begins", "finished"):
        yield Scalar("stage_running", float(message == "begins"), {"stage": kind})
    if message == "finished":
        yield Scalar("stage_seconds", fields["seconds"], {"stage": kind})
    if message == "wave done":
        yield from _of_wave(fields)
    if "tokens_per_second" in fields:
        yield Scalar("tokens_per_second", fields["tokens_per_second"], {"stage": kind}, _step(fields))
    for name, loss in fields.get("loss", {}).items():
        yield Scalar("loss", loss, {"stage": kind, "learner": name}, _step(fields))


def _of_wave(fields: dict[str, Any]) -> Iterator[Scalar]:
    domain, wave = fields["domain"], fields["wave"]
    yield Scalar("examples", fields["examples"], {"domain": domain}, wave)
    for phase in ("brainstorm", "respond"):
        valid, made = map(int, fields[f"{phase}_valid"].split("/"))
        yield Scalar("rows_generated", made, {"domain": domain, "phase": phase}, wave)
        yield Scalar("rows_rejected", made - valid, {"domain": domain, "phase": phase}, wave)


def _step(fields: dict[str, Any]) -> int | None:
    return int(fields["step"].split("/")[0]) if "step" in fields else None

"""What a stage is, and how stages run in order, skip what is done, and are done anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import RunDir

Settings = tuple[dict[str, Any], dict[str, str]]


@dataclass(frozen=True)
class Context:
    """What every stage works with."""

    config: RunConfig
    domains: list[Domain]
    base: BaseModel
    run_dir: RunDir
    emit: Emit

    @property
    def names(self) -> list[str]:
        """The domains' names, which are the experts' names, in order."""
        return [domain.name for domain in self.domains]


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    folders: what it makes, each finished by a manifest. expected: the settings and inputs that a
    folder's manifest must carry. leaves: further folders that go when the stage is done anew.
    """

    name: str
    folders: Callable[[Context], list[str]]
    expected: Callable[[Context, str], Settings]
    run: Callable[[Context], None]
    leaves: tuple[str, ...] = ()

    def is_done(self, context: Context) -> bool:
        """Whether every folder is finished as the config asks; UserError where one was made otherwise."""
        return all(
            context.run_dir.is_done(folder, *self.expected(context, folder), redo=self.name)
            for folder in self.folders(context)
        )


def missing(stages: Sequence[Stage], context: Context, last: str | None = None) -> list[Stage]:
    """The stages to run, in order: from the first that is not done up to `last`.

    Raises UserError where a finished folder was made with other settings than the config's.
    """
    names = [stage.name for stage in stages]
    wanted = stages[: names.index(last) + 1] if last else stages
    for position, stage in enumerate(wanted):
        if not stage.is_done(context):
            return list(wanted[position:])
    return []


def delete_from(stages: Sequence[Stage], context: Context, name: str) -> None:
    """Delete what a stage and those after it have made."""
    names = [stage.name for stage in stages]
    for stage in stages[names.index(name) :]:
        for folder in (*stage.folders(context), *stage.leaves):
            context.run_dir.storage.delete(folder)


def run_stages(stages: Sequence[Stage], context: Context) -> None:
    """Run stages in order, each with its beginning, end and seconds on record."""
    for stage in stages:
        context.emit(stage.name, message="begins")
        start = time.monotonic()
        stage.run(context)
        context.emit(stage.name, message="finished", seconds=round(time.monotonic() - start, 1))

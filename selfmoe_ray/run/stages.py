"""A stage says what it takes and gives; what runs it alone knows of manifests, of skipping and of --redo."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from selfmoe_ray.errors import UserError
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import RunDir

# The stages of a run, in order.
STAGES = ("generate", "experts", "router", "mixse", "measure", "report")

MadeWith = tuple[dict[str, Any], dict[str, str]]


@dataclass(frozen=True)
class Product:
    """A folder that a stage makes.

    settings: the config values that it depends on. inputs: the folders that it is made of. redo: what `--redo` is
    told to make it anew. begun: the settings that unfinished work in it depends on, None where none is kept.
    grows: a setting that may be raised (None is the most): a folder of a smaller value is unfinished, and its work
    is taken up.
    """

    folder: str
    settings: dict[str, Any]
    inputs: Sequence[str]
    redo: str
    begun: dict[str, Any] | None = None
    grows: str | None = None

    def made_with(self, run_dir: RunDir) -> MadeWith:
        """The settings and the inputs' hashes that its manifest must carry. UserError where an input is missing."""
        return self.settings, {folder: run_dir.manifest_hash(folder) for folder in self.inputs}


@dataclass(frozen=True)
class Made:
    """A product that is finished but for its manifest.

    counts: what was made. devices: how many GPUs, or engines and workers where there are none, worked on it, a share
    where they worked on several at once. seconds: wall-clock time, None for that since the stage began.
    """

    folder: str
    counts: dict[str, Any]
    devices: float = 0
    seconds: float | None = None


# Closed before an error leaves the stage, so that what it holds is let go at once.
Making = Generator[Made, None, None]


@dataclass(frozen=True)
class Stage:
    """One step of work. make: given the products that are missing, makes these and may make the others again.

    A product's manifest is written when `make` yields it, so what comes after the yield may clean up.
    leaves: further folders that go when the stage is done anew.
    """

    name: str
    gives: Sequence[Product]
    make: Callable[[Sequence[Product]], Making]
    leaves: Sequence[str] = ()


def missing(stages: Sequence[Stage], run_dir: RunDir, until: str | None = None) -> list[Stage]:
    """The stages to run, in order: from the first with a product that is missing up to `until`.

    Raises UserError where a finished folder was made with other settings than the product's.
    """
    names = [stage.name for stage in stages]
    wanted = stages[: names.index(until) + 1] if until else stages
    for position, stage in enumerate(wanted):
        if not all([_is_done(product, run_dir) for product in stage.gives]):
            return list(wanted[position:])
    return []


def delete_from(stages: Sequence[Stage], run_dir: RunDir, name: str) -> None:
    """Delete what a stage and those after it have made."""
    names = [stage.name for stage in stages]
    for stage in stages[names.index(name) :]:
        for folder in (*(product.folder for product in stage.gives), *stage.leaves):
            run_dir.storage.delete(folder)


def run_stages(stages: Sequence[Stage], run_dir: RunDir, emit: Emit) -> None:
    """Run stages in order, each with its beginning, end and seconds on record."""
    for stage in stages:
        emit(stage.name, message="begins")
        start = time.monotonic()
        run_stage(stage, run_dir)
        emit(stage.name, message="finished", seconds=round(time.monotonic() - start, 1))


def run_stage(stage: Stage, run_dir: RunDir) -> None:
    """Make what a stage gives and is missing. Raises UserError as `begin`, and where an input is not finished."""
    if todo := begin(stage.gives, run_dir):
        finish(stage.gives, stage.make(todo), run_dir)


def begin(products: Sequence[Product], run_dir: RunDir) -> list[Product]:
    """The products that are missing, each with what it is made with on record before any of it is written.

    Raises UserError where a folder holds other work, finished or not: names the first setting that differs and
    the flag (`--redo <redo>`) that makes it anew.
    """
    todo = [product for product in products if not _is_done(product, run_dir)]
    for product in todo:
        if product.begun is not None:
            _begin(product, product.begun, run_dir)
    return todo


def finish(products: Sequence[Product], making: Making, run_dir: RunDir) -> None:
    """Write the manifest of each product as soon as it is made; always the last write in its folder."""
    start = time.monotonic()
    made_with = {product.folder: product.made_with(run_dir) for product in products}
    with closing(making):
        for made in making:
            seconds = time.monotonic() - start if made.seconds is None else made.seconds
            run_dir.write_manifest(made.folder, *made_with[made.folder], made.counts, seconds, made.devices)


def _is_done(product: Product, run_dir: RunDir) -> bool:
    """Whether the folder holds exactly this work, finished. Raises UserError where it holds other work."""
    manifest = run_dir.read_manifest(product.folder)
    if manifest is None or _has_grown(product, run_dir):
        return False
    settings, inputs = product.made_with(run_dir)
    _refuse_other(product, manifest, {"settings": settings, "inputs": inputs}, run_dir)
    return True


def _begin(product: Product, settings: dict[str, Any], run_dir: RunDir) -> None:
    name, storage = f"{product.folder}/{run_dir.BEGUN}", run_dir.storage
    if _has_grown(product, run_dir):
        storage.delete(f"{product.folder}/manifest.json")
    elif storage.exists(name):
        return _refuse_other(product, storage.read_json(name), {"settings": settings}, run_dir)
    storage.write_json(name, {"settings": settings})


def _has_grown(product: Product, run_dir: RunDir) -> bool:
    """Whether the folder holds the same work with a smaller value of what may grow, finished or not."""
    name = f"{product.folder}/{run_dir.BEGUN}"
    if product.grows is None or not run_dir.storage.exists(name):
        return False
    found = run_dir.storage.read_json(name)["settings"]
    less, more = found.get(product.grows), product.settings[product.grows]
    is_more = less is not None and (more is None or more > less)
    return is_more and {**found, product.grows: more} == product.begun


def _refuse_other(product: Product, found_work: dict[str, Any], work: dict[str, Any], run_dir: RunDir) -> None:
    changes = (_first_change(found_work[key], work[key]) for key in work)
    change = next(filter(None, changes), None)
    if change is None:
        return
    field, found, asked = change
    raise UserError(
        f"{run_dir.storage.path(product.folder)} was made with {field} = {found!r}; this config asks for {asked!r}.\n"
        f"  to keep it:        set {field} back to {found!r}\n"
        f"  to make it anew:   add --redo {product.redo} (deletes this stage's results and those that follow)\n"
        f"  to have both:      choose another run_name"
    )


def _first_change(found: Any, asked: Any, field: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(found, dict) and isinstance(asked, dict):
        for key in sorted({*found, *asked}):
            change = _first_change(found.get(key), asked.get(key), f"{field}.{key}" if field else key)
            if change:
                return change
        return None
    return None if found == asked else (field, found, asked)

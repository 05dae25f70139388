"""Experiment trackers, each through its own library, fed with the numbers in a run's events."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from selfmoe_ray.config import Tracker
from selfmoe_ray.errors import UserError
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.scalars import Scalar, scalars

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
PROJECT = "selfmoe_ray"
Write = Callable[[Scalar, int], object]


@contextmanager
def tracked(names: Sequence[Tracker], config: dict[str, Any], run_dir: RunDir) -> Iterator[list[Emit]]:
    """An Emit for each tracker, until the block ends.

    config: the run's settings, which trackers show. Raises UserError where a tracker's package is missing or the
    tracker does not begin. Addresses and keys are the libraries' own environment variables.
    """
    openers = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    with ExitStack() as stack:
        yield [stack.enter_context(_lenient(name, openers[name](config, run_dir))) for name in names]


@contextmanager
def _lenient(name: Tracker, opened: AbstractContextManager[Write]) -> Iterator[Emit]:
    """A tracker that fails after it has begun is left out from there on: a run outlives its onlookers."""
    try:
        write = opened.__enter__()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"trackers: {name} does not begin: {error}") from error
    numbers = _Numbers(name, write)
    try:
        yield numbers
    finally:
        try:
            opened.__exit__(*sys.exc_info())
        except Exception as error:
            numbers.give_up(error)


class _Numbers:
    """An Emit that passes every number on; a series without steps of its own counts its values."""

    def __init__(self, name: str, write: Write):
        self._name = name
        self._write: Write | None = write
        self._count: dict[str, int] = {}

    def __call__(self, kind: str, **fields: Any) -> None:
        for scalar in scalars(kind, fields):
            step = self._step(scalar)
            try:
                if self._write:
                    self._write(scalar, step)
            except Exception as error:
                self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Say once that the tracker gets no more."""
        if self._write:
            print(f"trackers: {self._name} gets nothing more, events.jsonl has all: {error}", file=sys.stderr)
        self._write = None

    def _step(self, scalar: Scalar) -> int:
        self._count[scalar.path] = self._count.get(scalar.path, -1) + 1
        return self._count[scalar.path] if scalar.step is None else scalar.step


@contextmanager
def _tensorboard(config: dict[str, Any], run_dir: RunDir) -> Iterator[Write]:
    if not run_dir.storage.is_local:
        raise UserError(f"trackers: tensorboard writes to local folders only, found {run_dir.storage.path()}")
    library = _library("tensorboard")
    with library.SummaryWriter(str(Path(run_dir.storage.path("tensorboard"))), flush_secs=10) as writer:
        yield lambda scalar, step: writer.add_scalar(scalar.path, scalar.value, step)


@contextmanager
def _mlflow(config: dict[str, Any], run_dir: RunDir) -> Iterator[Write]:
    library = _library("mlflow")
    library.set_experiment(PROJECT)
    with library.start_run(run_name=run_dir.run_name):
        library.log_dict(config, "run.yaml")
        yield lambda scalar, step: library.log_metric(scalar.path, scalar.value, step=step)


@contextmanager
def _wandb(config: dict[str, Any], run_dir: RunDir) -> Iterator[Write]:
    library = _library("wandb")
    with library.init(project=PROJECT, name=run_dir.run_name, config=config) as run:
        # Its own step grows with every call and cannot go back, as ours does from one stage to the next.
        yield lambda scalar, step: run.log({scalar.path: scalar.value, f"{scalar.path}/step": step})


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise UserError(f"trackers: {name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}") from error

"""The trainers themselves: concurrent TorchTrainers in Ray tasks, and what each of their workers runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.ray_session import beside_driver
from selfmoe_ray.run.events import Emit
from selfmoe_ray.training.trainers import WorkerShape

if TYPE_CHECKING:
    from selfmoe_ray.training.loop import TrainingLoop
    from selfmoe_ray.training.worker import Phase

POLL_SECONDS = 0.5
FREE_CHECKPOINTS = 2


def fit_all(phases: Sequence[Phase], workers: Sequence[int], shape: WorkerShape, emit: Emit) -> None:
    """Run all trainers at once, passing on their progress; raises what the first that fails raises."""
    import ray
    from ray.exceptions import RayTaskError

    here = beside_driver()
    fit = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_fit)
    progress = ray.remote(num_cpus=0, scheduling_strategy=here)(_Progress).remote()
    pending = [
        fit.options(name=f"train {phase.kind} {', '.join(phase.experts)}").remote(phase, count, shape, progress)
        for phase, count in zip(phases, workers, strict=True)
    ]
    try:
        while pending:
            finished, pending = ray.wait(pending, timeout=POLL_SECONDS)
            for kind, fields in ray.get(progress.drain.remote()):
                emit(kind, **fields)
            ray.get(finished)
    except RayTaskError as error:
        raise _reason(error) from error
    finally:
        for task in pending:
            ray.cancel(task, force=True)
        ray.kill(progress)


class _Progress:
    """Carries the trainers' events to the driver."""

    def __init__(self) -> None:
        self._events: list[tuple[str, dict[str, Any]]] = []

    def add(self, kind: str, fields: dict[str, Any]) -> None:
        self._events.append((kind, fields))

    def drain(self) -> list[tuple[str, dict[str, Any]]]:
        events, self._events = self._events, []
        return events


def _fit(phase: Phase, workers: int, shape: WorkerShape, progress: Any) -> None:
    """One trainer; a stopped one of the same name goes on from its last checkpoint."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources: dict[str, float] = {"CPU": shape.cpus}
    if shape.gpus:
        resources["GPU"] = shape.gpus
    TorchTrainer(
        _work,
        train_loop_config={"phase": ray.put(phase), "threads": shape.cpus, "progress": progress},
        torch_config=TorchConfig(backend="nccl" if shape.gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(shape.gpus), resources_per_worker=resources),
        run_config=RunConfig(
            name=phase.trainer,
            storage_path=phase.run_dir.storage.path(str(Path(phase.run_dir.checkpoints(phase.trainer)).parent)),
            failure_config=FailureConfig(max_failures=phase.config.resources.training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=FREE_CHECKPOINTS),
        ),
    ).fit()


def _work(arguments: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    from selfmoe_ray.training.worker import run_phase

    phase: Phase = ray.get(arguments["phase"])
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(arguments["threads"])

    def notify(**fields: Any) -> None:
        arguments["progress"].add.remote(phase.kind, fields)

    def on_checkpoint(loop: TrainingLoop) -> None:
        with tempfile.TemporaryDirectory() as folder:
            loop.save(Path(folder))
            ray.train.report({"step": loop.step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        run_phase(phase, str(device), None, notify, on_checkpoint)
        return
    with checkpoint.as_directory() as folder:
        run_phase(phase, str(device), Path(folder), notify, on_checkpoint)


def _reason(error: Exception) -> Exception:
    """A worker's own UserError, if that is what ended a trainer."""
    cause = getattr(error, "cause", error)
    failures = getattr(cause, "worker_failures", {}).values()
    for failure in failures:
        inner = getattr(failure, "cause", failure)
        if isinstance(inner, UserError):
            return inner
    return error

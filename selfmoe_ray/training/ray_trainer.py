"""The trainers themselves: concurrent TorchTrainers in Ray tasks, and what each of their workers runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.ray_session import beside_driver
from selfmoe_ray.run.events import Emit
from selfmoe_ray.training.trainers import WorkerDevices

if TYPE_CHECKING:
    from selfmoe_ray.training.loop import TrainingLoop
    from selfmoe_ray.training.worker import TrainerJob

POLL_SECONDS = 0.5
FREE_CHECKPOINTS = 2


def fit_all(jobs: Sequence[TrainerJob], workers: Sequence[int], devices: WorkerDevices, emit: Emit) -> None:
    """Run all trainers at once, passing on their progress; raises what the first that fails raises."""
    import ray
    from ray.exceptions import RayTaskError

    here = beside_driver()
    fit = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_fit)
    progress = ray.remote(num_cpus=0, scheduling_strategy=here)(_Progress).remote()
    pending = [
        fit.options(name=f"train {job.kind} {', '.join(job.experts)}").remote(job, count, devices, progress)
        for job, count in zip(jobs, workers, strict=True)
    ]
    try:
        while pending:
            finished, pending = ray.wait(pending, timeout=POLL_SECONDS)
            for kind, fields in ray.get(progress.drain.remote()):
                emit(kind, **fields)
            ray.get(finished)
            if refusal := ray.get(progress.refusal.remote()):
                raise UserError(refusal)
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
        self._refusal = ""

    def refuse(self, message: str) -> None:
        self._refusal = message

    def refusal(self) -> str:
        return self._refusal

    def add(self, kind: str, fields: dict[str, Any]) -> None:
        self._events.append((kind, fields))

    def drain(self) -> list[tuple[str, dict[str, Any]]]:
        events, self._events = self._events, []
        return events


def _fit(job: TrainerJob, workers: int, devices: WorkerDevices, progress: Any) -> None:
    """One trainer; a stopped one of the same name goes on from its last checkpoint."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources: dict[str, float] = {"CPU": devices.cpus}
    if devices.gpus:
        resources["GPU"] = devices.gpus
    TorchTrainer(
        _work,
        train_loop_config={"job": ray.put(job), "threads": devices.cpus, "progress": progress},
        torch_config=TorchConfig(backend="nccl" if devices.gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(devices.gpus), resources_per_worker=resources),
        run_config=RunConfig(
            name=job.trainer,
            storage_path=job.run_dir.storage.path(str(Path(job.run_dir.checkpoints(job.trainer)).parent)),
            failure_config=FailureConfig(max_failures=job.config.resources.training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=FREE_CHECKPOINTS),
        ),
    ).fit()


def _work(arguments: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    from selfmoe_ray.training.worker import run_trainer

    job: TrainerJob = ray.get(arguments["job"])
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(arguments["threads"])

    def notify(**fields: Any) -> None:
        arguments["progress"].add.remote(job.kind, fields)

    def on_checkpoint(loop: TrainingLoop) -> None:
        with tempfile.TemporaryDirectory() as folder:
            loop.save(Path(folder))
            ray.train.report({"step": loop.step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    checkpoint = ray.train.get_checkpoint()
    try:
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            run_trainer(job, str(device), Path(folder) if folder else None, notify, on_checkpoint)
    except UserError as error:
        # Ray Train would try it again, to the same end.
        ray.get(arguments["progress"].refuse.remote(str(error)))


def _reason(error: Exception) -> Exception:
    """A worker's own UserError, if that is what ended a trainer."""
    cause = getattr(error, "cause", error)
    failures = getattr(cause, "worker_failures", {}).values()
    for failure in failures:
        inner = getattr(failure, "cause", failure)
        if isinstance(inner, UserError):
            return inner
    return error

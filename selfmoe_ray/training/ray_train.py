"""Training on Ray: concurrent TorchTrainers, one for each group of experts, then one for the router."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfmoe_ray.base_model import BaseModel, load_tokenizer
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.errors import UserError
from selfmoe_ray.events import Emit
from selfmoe_ray.ray_cluster import read_cluster
from selfmoe_ray.ray_session import beside_driver
from selfmoe_ray.run_dir import RunDir
from selfmoe_ray.training.dataset import TokenizedRows, tokenize_all
from selfmoe_ray.training.devices import WorkerShape, count_devices, worker_shape
from selfmoe_ray.training.plan import TrainerPlan, plan_trainers
from selfmoe_ray.training.stage import Expected, expert_manifest, joint_manifest, router_manifest, training_examples

if TYPE_CHECKING:
    from selfmoe_ray.training.loop import TrainingLoop
    from selfmoe_ray.training.phase import Phase

POLL_SECONDS = 0.5
FREE_CHECKPOINTS = 2


def train_experts(config: RunConfig, domains: Sequence[Domain], base: BaseModel, run_dir: RunDir, emit: Emit) -> None:
    """Train the experts that are not finished, and write `experts/<domain>/`, manifests last.

    Needs a running Ray. Raises UserError where a finished expert was made with other settings, where
    a domain has no rows, or where the cluster cannot hold a trainer.
    """
    start = time.monotonic()
    todo = [
        domain.name
        for domain in domains
        if not run_dir.is_done(
            run_dir.expert(domain.name), *expert_manifest(config, domain.name, base, run_dir), redo="experts"
        )
    ]
    if not todo:
        return
    plans, shape = plan_experts(config, len(todo))
    rows = _tokenize(config, todo, base, run_dir, emit, "experts")
    phases = []
    for plan in plans:
        names = [todo[index] for index in plan.experts]
        expected = [expert_manifest(config, name, base, run_dir) for name in names]
        phases.append(_phase("experts", expected, config, names, base, run_dir, rows, plan.workers))
        emit("experts", message=f"one trainer for {', '.join(names)}", workers=plan.workers, cpus=shape.cpus,
             gpus=shape.gpus, zero_stage=config.resources.training.zero_stage)  # fmt: skip
    _fit_all(phases, [plan.workers for plan in plans], shape, emit)
    seconds = time.monotonic() - start
    for plan in plans:
        for name in (todo[index] for index in plan.experts):
            counts = _counts(rows[name], config.training.experts.epochs)
            expected_of = expert_manifest(config, name, base, run_dir)
            devices = plan.workers / len(plan.experts)
            run_dir.write_manifest(run_dir.expert(name), *expected_of, counts, seconds, devices)
    _forget(phases)


def plan_experts(config: RunConfig, experts: int) -> tuple[list[TrainerPlan], WorkerShape]:
    """How many trainers and workers train so many experts on this cluster, and what each worker has.

    Needs a running Ray. Raises UserError where the cluster cannot hold one trainer.
    """
    return _plan(config, experts, config.resources.training.experts_per_trainer)


def _plan(config: RunConfig, learners: int, each: Literal["auto"] | int) -> tuple[list[TrainerPlan], WorkerShape]:
    resources, cluster = config.resources.training, read_cluster()
    plans = plan_trainers(learners, each, resources.workers_per_trainer, count_devices(resources, cluster))
    return plans, worker_shape(resources, plans, cluster)


def train_router(config: RunConfig, domains: Sequence[Domain], base: BaseModel, run_dir: RunDir, emit: Emit) -> None:
    """Train the router on all experts' rows, the experts frozen, and write `router/`, its manifest last.

    Needs a running Ray and finished experts. Raises UserError as `train_experts` does.
    """
    names = [domain.name for domain in domains]
    expected = router_manifest(config, names, base, run_dir)
    epochs = config.training.router.epochs
    _train_on_all("router", expected, [run_dir.ROUTER], epochs, config, names, names, base, run_dir, emit)


def train_jointly(
    config: RunConfig,
    domains: Sequence[Domain],
    experts: Sequence[str],
    base: BaseModel,
    run_dir: RunDir,
    emit: Emit,
) -> None:
    """Train experts and their router together on the rows of all domains, by the language-model loss alone.

    One expert is gated by 1 whatever its router: that is instance merging. Lengths and rates are those of
    the experts' training. Writes `experts/<name>/` and `router/`, manifests last. Raises UserError as
    `train_experts` does.
    """
    names = [domain.name for domain in domains]
    expected = joint_manifest(config, names, experts, base, run_dir)
    folders = [*map(run_dir.expert, experts), run_dir.ROUTER]
    epochs = config.training.experts.epochs
    _train_on_all("joint", expected, folders, epochs, config, names, experts, base, run_dir, emit)


def _train_on_all(
    kind: Literal["router", "joint"],
    expected: Expected,
    folders: Sequence[str],
    epochs: float,
    config: RunConfig,
    names: Sequence[str],
    experts: Sequence[str],
    base: BaseModel,
    run_dir: RunDir,
    emit: Emit,
) -> None:
    """One trainer on the rows of all domains, whose names these are; the router is the last of the folders."""
    start = time.monotonic()
    if run_dir.is_done(run_dir.ROUTER, *expected, redo="router"):
        return
    [plan], shape = _plan(config, 1, 1)
    rows = _tokenize(config, names, base, run_dir, emit, kind)
    phase = _phase(kind, [expected], config, experts, base, run_dir, rows, plan.workers)
    _fit_all([phase], [plan.workers], shape, emit)
    counts, seconds = _sum_counts(rows, epochs), time.monotonic() - start
    for folder in folders:
        run_dir.write_manifest(folder, *expected, counts, seconds, plan.workers / len(folders))
    _forget([phase])


def _tokenize(
    config: RunConfig, names: Sequence[str], base: BaseModel, run_dir: RunDir, emit: Emit, kind: str
) -> dict[str, TokenizedRows]:
    tokenizer = load_tokenizer(base.path, config.trust_remote_code)
    rows = {}
    for name in names:
        examples = training_examples(config, name, run_dir)
        rows[name] = tokenize_all(examples, tokenizer, config.training.max_length)
        counts = _counts(rows[name], 1)
        emit(kind, message="rows to train on", domain=name, **counts)
    return rows


def _counts(rows: TokenizedRows, epochs: float) -> dict[str, Any]:
    """Rows, and the tokens read in all epochs."""
    tokens = sum(len(row.input_ids) for row in rows.rows)
    return {
        "rows": len(rows.rows),
        "truncated": rows.truncated,
        "dropped": rows.dropped,
        "tokens": round(tokens * epochs),
    }


def _sum_counts(rows: dict[str, TokenizedRows], epochs: float) -> dict[str, Any]:
    parts = [_counts(of_domain, epochs) for of_domain in rows.values()]
    return {key: sum(part[key] for part in parts) for key in parts[0]}


def _phase(
    kind: Literal["experts", "router", "joint"],
    expected: Sequence[Expected],
    config: RunConfig,
    experts: Sequence[str],
    base: BaseModel,
    run_dir: RunDir,
    rows: dict[str, TokenizedRows],
    workers: int,
) -> Phase:
    from selfmoe_ray.training.phase import Phase

    # State can be resumed only by the same work in the same layout, so its name stands for both.
    layout = [list(experts), workers, config.resources.training.zero_stage]
    digest = hashlib.sha256(json.dumps([expected, layout], sort_keys=True).encode()).hexdigest()[:12]
    pad = load_tokenizer(base.path, config.trust_remote_code).pad_token_id
    domains = experts if kind == "experts" else rows
    chosen = {name: rows[name].rows for name in domains}
    return Phase(kind, f"{kind}-{digest}", config, base, run_dir, tuple(experts), chosen, pad)


def _fit_all(phases: Sequence[Phase], workers: Sequence[int], shape: WorkerShape, emit: Emit) -> None:
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

    from selfmoe_ray.training.phase import run_phase

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


def _forget(phases: Sequence[Phase]) -> None:
    """Resumable state of finished work is of no more use."""
    for phase in phases:
        phase.run_dir.storage.delete(phase.run_dir.checkpoints(phase.trainer))

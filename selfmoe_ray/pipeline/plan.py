"""What each stage gets of a cluster, and whether it fits there. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from selfmoe_ray.base_model.sizes import DTYPE_BYTES, DecoderSizes
from selfmoe_ray.config import RunConfig, TrainingResources
from selfmoe_ray.engine.plan import KV_CACHE_SPACE, EnginePlan, engine_kwargs, env_vars, plan_engines
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.hardware import Cluster
from selfmoe_ray.pipeline.memory import (
    GIB,
    GPU_MEMORY_UTILIZATION,
    EngineLoad,
    MemoryEstimate,
    Workload,
    expert_training,
    generating,
    measuring,
    router_training,
)
from selfmoe_ray.training.trainers import (
    TrainerPlan,
    WorkerDevices,
    count_devices,
    gpus_per_worker,
    plan_trainers,
    worker_devices,
)

# Settings that need less memory and change nothing that is learned, the least costly first.
_SMALLER_TRAINING: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": True},
    {"micro_batch_size": 1},
    {"gradient_checkpointing": True, "micro_batch_size": 1},
    {"zero_stage": 3},
    {"zero_stage": 3, "gradient_checkpointing": True},
    {"zero_stage": 3, "gradient_checkpointing": True, "micro_batch_size": 1},
)


@dataclass(frozen=True)
class StagePlan:
    """A stage of work on devices: who works, in words, and the memory of one device."""

    name: str
    workers: str
    memory: MemoryEstimate


@dataclass(frozen=True)
class RunPlan:
    """The stages of a run that need devices."""

    cluster: Cluster
    stages: tuple[StagePlan, ...]

    def lines(self) -> Iterator[str]:
        """The plan for people."""
        yield f"plan for {describe(self.cluster)}"
        for stage in self.stages:
            yield f"  {stage.name}: {stage.workers}"
            yield f"    {stage.memory}"


def describe(cluster: Cluster) -> str:
    """What a cluster has, in a line."""
    parts = [f"{len(cluster.node_cpus)} node(s)", f"{sum(cluster.node_cpus)} CPUs"]
    if sum(cluster.node_gpus):
        size = f" of {cluster.gpu_memory / GIB:.0f} GiB" if cluster.gpu_memory else ""
        parts.append(f"{sum(cluster.node_gpus)} GPUs{size}")
    if cluster.node_memory:
        parts.append(f"{min(cluster.node_memory) / GIB:.0f} GiB a node")
    return ", ".join(parts)


def plan_run(
    config: RunConfig, domains: Sequence[str], sizes: DecoderSizes, cluster: Cluster, stages: Collection[str]
) -> RunPlan:
    """Plan those of the named stages that need devices.

    Raises UserError where the cluster lacks the devices asked for, or where a device lacks the memory,
    unless `resources.check_memory` is off; it says what would fit.
    """
    plans = []
    if "generate" in stages:
        plans.append(_generation(config, domains, sizes, cluster))
    if "experts" in stages:
        plans.append(_experts(config, len(domains), sizes, cluster, config.resources.training))
    if "router" in stages:
        plans.append(_router(config, len(domains), sizes, cluster, config.resources.training))
    if "measure" in stages:
        plans.append(_measure(config, len(domains), sizes, cluster))
    if config.resources.check_memory:
        for plan in plans:
            if not plan.memory.fits:
                raise UserError(_refusal(plan, config, domains, sizes, cluster))
    return RunPlan(cluster, tuple(plans))


def _generation(config: RunConfig, domains: Sequence[str], sizes: DecoderSizes, cluster: Cluster) -> StagePlan:
    resources = config.resources.generation
    there = {"CPU": sum(cluster.node_cpus), "GPU": sum(cluster.node_gpus)}
    engines = plan_engines(resources, domains, there)
    settings = engine_kwargs(engines, config.generation, resources)
    parallel = settings["tensor_parallel_size"]
    if sizes.heads % parallel:
        raise UserError(
            f"resources.generation.tensor_parallel_size: {parallel} does not divide the model's "
            f"{sizes.heads} attention heads"
        )
    kv_cache = None if engines.gpus else int(float(env_vars(engines, resources, True)[KV_CACHE_SPACE]) * GIB)
    load = EngineLoad(
        parallel, settings["max_num_batched_tokens"], settings["max_num_seqs"], kv_cache, bool(engines.gpus)
    )
    available = _of_engine(engines, settings, cluster)
    return StagePlan("generate", engines.explanation, generating(config, sizes, load, available))


def _of_engine(engines: EnginePlan, settings: dict[str, Any], cluster: Cluster) -> int | None:
    """Bytes that one device of an engine may use; on CPUs all of an engine's workers are on one node."""
    count = sum(pool.engines for pool in engines.pools)
    if not engines.gpus:
        share = _of_node(cluster, count)
        return share // engines.tensor_parallel_size if share else share
    if cluster.gpu_memory is None:
        return None
    utilization = settings.get("gpu_memory_utilization", GPU_MEMORY_UTILIZATION)
    return int(cluster.gpu_memory * utilization * min(1.0, engines.gpus / engines.tensor_parallel_size))


def _of_node(cluster: Cluster, processes: int) -> int | None:
    """Bytes of the smallest node for each of so many processes, spread evenly."""
    if not cluster.node_memory:
        return None
    return min(cluster.node_memory) // math.ceil(processes / len(cluster.node_memory))


def _of_worker(worker: WorkerDevices, workers: int, cluster: Cluster) -> int | None:
    if not worker.gpus:
        return _of_node(cluster, workers)
    return None if cluster.gpu_memory is None else int(cluster.gpu_memory * min(1.0, worker.gpus))


def _trainers(
    learners: int, each: Any, cluster: Cluster, resources: TrainingResources
) -> tuple[list[TrainerPlan], WorkerDevices, int | None]:
    plans = plan_trainers(learners, each, resources.workers_per_trainer, count_devices(resources, cluster))
    worker = worker_devices(resources, plans, cluster)
    return plans, worker, _of_worker(worker, sum(plan.workers for plan in plans), cluster)


def _refuse_to_load(
    config: RunConfig, sizes: DecoderSizes, cluster: Cluster, worker: WorkerDevices, resources: TrainingResources
) -> None:
    """ZeRO-3 has the base in each worker's main memory before it is split over the devices."""
    if resources.zero_stage != 3 or not worker.gpus or not cluster.node_memory:
        return
    on_a_node = max(1, int(max(cluster.node_gpus) / worker.gpus))
    needed = on_a_node * sizes.parameters * DTYPE_BYTES[config.training.dtype]
    if config.resources.check_memory and needed > min(cluster.node_memory):
        raise UserError(
            f"resources.training: {on_a_node} workers of a node load the base with {needed / GIB:.0f} GiB of main "
            f"memory, a node has {min(cluster.node_memory) / GIB:.0f} GiB\n"
            "  what would fit: nodes with more memory, or with fewer workers each (gpus_per_worker)\n"
            "  (an estimate: resources.check_memory=false goes on regardless)"
        )


def _experts(
    config: RunConfig, experts: int, sizes: DecoderSizes, cluster: Cluster, resources: TrainingResources
) -> StagePlan:
    plans, worker, available = _trainers(experts, resources.experts_per_trainer, cluster, resources)
    _refuse_to_load(config, sizes, cluster, worker, resources)
    largest, workers = max(len(plan.experts) for plan in plans), plans[0].workers
    load = Workload(largest, largest, workers, bool(worker.gpus))
    text = f"{len(plans)} trainer(s) of up to {largest} expert(s); {_workers(workers, worker, resources)}"
    return StagePlan("experts", text, expert_training(config, sizes, resources, load, available))


def _router(
    config: RunConfig, experts: int, sizes: DecoderSizes, cluster: Cluster, resources: TrainingResources
) -> StagePlan:
    [plan], worker, available = _trainers(1, 1, cluster, resources)
    load = Workload(0, experts, plan.workers, bool(worker.gpus))
    text = f"1 trainer over {experts} expert(s); {_workers(plan.workers, worker, resources)}"
    return StagePlan("router", text, router_training(config, sizes, resources, load, available))


def _workers(count: int, worker: WorkerDevices, resources: TrainingResources) -> str:
    device = f"{worker.gpus:g} GPU" if worker.gpus else "no GPU"
    return f"{count} worker(s) a trainer, each {worker.cpus} CPU(s) and {device}, ZeRO-{resources.zero_stage}"


def _measure(config: RunConfig, experts: int, sizes: DecoderSizes, cluster: Cluster) -> StagePlan:
    resources = config.resources.training
    worker = worker_devices(resources, [TrainerPlan((0,), workers=1)], cluster)
    available = _of_worker(worker, 1, cluster)
    on_gpu = bool(gpus_per_worker(resources, cluster))
    device = f"{worker.gpus:g} GPU" if worker.gpus else f"{worker.cpus} CPU(s)"
    memory = measuring(config, sizes, experts, on_gpu, available)
    return StagePlan("measure", f"the mixture on {device}", memory)


def _refusal(plan: StagePlan, config: RunConfig, domains: Sequence[str], sizes: DecoderSizes, cluster: Cluster) -> str:
    remedy = {
        "generate": lambda: _smaller_generation(config, domains, sizes, cluster),
        "experts": lambda: _smaller_training(_experts, config, len(domains), sizes, cluster),
        "router": lambda: _smaller_training(_router, config, len(domains), sizes, cluster),
        "measure": lambda: "jobs/stage_mixse.py, which ends with the mixture: this stage has it on one device",
    }[plan.name]()
    needed = math.ceil(plan.memory.total / GIB)
    return (
        f"{plan.name}: does not fit into a device's memory: {plan.memory}\n"
        f"  plan: {plan.workers}\n"
        f"  what would fit: {remedy or f'devices of {needed} GiB, or more of them'}\n"
        "  (an estimate: resources.check_memory=false goes on regardless)"
    )


def _smaller_training(plan_stage: Any, config: RunConfig, experts: int, sizes: DecoderSizes, cluster: Cluster) -> str:
    current = config.resources.training
    # One trainer on all devices has the most to share a base among.
    fewest = [
        {**change, "experts_per_trainer": experts} for change in _SMALLER_TRAINING if change.get("zero_stage") == 3
    ]
    for change in [*_SMALLER_TRAINING, *fewest]:
        fits = False
        resources = current.model_copy(update=change)
        with suppress(UserError):
            fits = plan_stage(config, experts, sizes, cluster, resources).memory.fits
        if fits:
            changed = {key: value for key, value in change.items() if getattr(current, key) != value}
            return ", ".join(f"resources.training.{key}={_yaml(value)}" for key, value in changed.items())
    if plan_stage is _router and config.training.router.init == "labels":
        by_loss = config.training.router.model_copy(update={"init": "random"})
        training = config.training.model_copy(update={"router": by_loss})
        other = _smaller_training(plan_stage, config.model_copy(update={"training": training}), experts, sizes, cluster)
        return f"training.router.init=random (no fit to labels), {other}" if other else ""
    return ""


def _smaller_generation(config: RunConfig, domains: Sequence[str], sizes: DecoderSizes, cluster: Cluster) -> str:
    current = config.resources.generation
    if not sum(cluster.node_gpus):
        return f"fewer resources.generation.engines, or less {KV_CACHE_SPACE} in resources.generation.env_vars"
    parallel = current.tensor_parallel_size * 2
    while parallel <= max(cluster.node_gpus) and sizes.heads % parallel == 0:
        section = current.model_copy(update={"tensor_parallel_size": parallel})
        resources = config.resources.model_copy(update={"generation": section})
        changed = config.model_copy(update={"resources": resources})
        if _generation(changed, domains, sizes, cluster).memory.fits:
            return f"resources.generation.tensor_parallel_size={parallel}"
        parallel *= 2
    return ""


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

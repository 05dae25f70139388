"""How many trainers there are, what each trains, and the devices of its workers. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selfmoe_ray.config import TrainingResources
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.hardware import Cluster
from selfmoe_ray.training.schedule import split_evenly


@dataclass(frozen=True)
class TrainerPlan:
    """One trainer: the experts (by index) on its one copy of the base, and its data-parallel workers."""

    experts: tuple[int, ...]
    workers: int


def plan_trainers(
    num_experts: int, experts_per_trainer: Literal["auto"] | int, workers: Literal["auto"] | int, devices: int
) -> list[TrainerPlan]:
    """Spread experts over trainers, and the devices over the trainers' workers.

    auto: as many trainers as experts and devices allow, so one device trains all experts on one
    copy of the base. Sizes differ by at most one expert.
    """
    if experts_per_trainer == "auto":
        trainers = min(max(devices, 1), num_experts)
    else:
        trainers = math.ceil(num_experts / experts_per_trainer)
    each = max(1, devices // trainers) if workers == "auto" else workers
    return [TrainerPlan(tuple(group), each) for group in split_evenly(range(num_experts), trainers)]


@dataclass(frozen=True)
class WorkerDevices:
    """The devices of one training worker."""

    cpus: int
    gpus: float


def gpus_per_worker(resources: TrainingResources, cluster: Cluster) -> float:
    """auto: a GPU a worker where the cluster has GPUs."""
    if resources.gpus_per_worker == "auto":
        return 1.0 if sum(cluster.node_gpus) else 0.0
    return float(resources.gpus_per_worker)


def count_devices(resources: TrainingResources, cluster: Cluster) -> int:
    """How many workers the cluster has a device for: GPUs or shares of them, else a node's CPUs each."""
    gpus = gpus_per_worker(resources, cluster)
    return int(sum(cluster.node_gpus) / gpus) if gpus else len(cluster.node_cpus)


def worker_devices(resources: TrainingResources, plans: Sequence[TrainerPlan], cluster: Cluster) -> WorkerDevices:
    """The devices of each worker; auto CPUs: one beside a GPU, else an even share of the nodes' CPUs.

    Raises UserError where one trainer would not fit into the cluster; trainers wait for each other.
    """
    gpus = gpus_per_worker(resources, cluster)
    workers = max(plan.workers for plan in plans)
    if resources.cpus_per_worker != "auto":
        cpus = resources.cpus_per_worker
    elif gpus or not cluster.node_cpus:
        cpus = 1
    else:
        on_a_node = math.ceil(sum(plan.workers for plan in plans) / len(cluster.node_cpus))
        cpus = max(1, min(cluster.node_cpus) // on_a_node)
    fitting = sum(
        min(node_cpus // cpus, int(node_gpus / gpus) if gpus else workers)
        for node_cpus, node_gpus in zip(cluster.node_cpus, cluster.node_gpus, strict=True)
    )
    if fitting < workers:
        raise UserError(
            f"resources.training: a trainer asks for {workers} worker(s) of {cpus} CPU(s) and {gpus:g} "
            f"GPU(s) each; the cluster has room for {fitting} (CPUs by node: {list(cluster.node_cpus)}, "
            f"GPUs by node: {list(cluster.node_gpus)}).\n"
            "  lower workers_per_trainer, cpus_per_worker or gpus_per_worker, or add nodes"
        )
    return WorkerDevices(cpus, gpus)

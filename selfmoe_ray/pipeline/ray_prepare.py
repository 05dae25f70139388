"""What a run does on its cluster before its work: wait for it, look at its nodes, plan, say so."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.base_model.sizes import read_sizes
from selfmoe_ray.config import RunConfig
from selfmoe_ray.machines.hardware import gpu_memory, this_machine
from selfmoe_ray.machines.ray_checks import require_healthy_nodes, resolve_on_nodes
from selfmoe_ray.machines.ray_nodes import read_cluster, wait_for_devices
from selfmoe_ray.machines.ray_session import ray_session
from selfmoe_ray.pipeline.plan import RunPlan, plan_run
from selfmoe_ray.run.events import Emit


def prepare_cluster(
    config: RunConfig, domains: Sequence[str], base: BaseModel, stages: Collection[str], emit: Emit
) -> None:
    """Refuse what the cluster cannot do while nothing has been computed for it yet, and print the plan.

    Needs a running Ray. Raises UserError: devices that do not come, nodes that cannot work, a plan that does
    not fit.
    """
    wait_for_devices(config.resources.cluster, emit)
    memories = [node.gpu_memory for node in require_healthy_nodes(config.root) if node.gpu_memory]
    sizes = read_sizes(base.path, config.trust_remote_code)
    plan = plan_run(config, domains, sizes, read_cluster(min(memories, default=None)), stages)
    for line in plan.lines():
        emit("plan", message=line)
    if plan.stages:
        resolve_on_nodes(base, config.trust_remote_code)


def plan_on_paper(config: RunConfig, domains: Sequence[str], base: BaseModel, stages: Collection[str]) -> RunPlan:
    """The plan on the cluster that RAY_ADDRESS names, else on this machine, whose Ray is not started for it."""
    sizes = read_sizes(base.path, config.trust_remote_code)
    if "RAY_ADDRESS" not in os.environ:
        return plan_run(config, domains, sizes, this_machine(), stages)
    with ray_session():
        return plan_run(config, domains, sizes, read_cluster(gpu_memory()), stages)

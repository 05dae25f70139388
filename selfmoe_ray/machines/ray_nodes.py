"""The nodes of the running Ray cluster: what they have, what they say, and the wait for those that are to come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from selfmoe_ray.config import ClusterResources
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.hardware import Cluster
from selfmoe_ray.run.events import Emit

POLL_SECONDS, SECONDS_BETWEEN_EVENTS = 1.0, 30.0
_NODE_DEATH_SECONDS = 30


def read_cluster(gpu_memory: int | None = None) -> Cluster:
    """The nodes of the running Ray cluster that have CPUs; gpu_memory: bytes of the smallest GPU, which Ray does
    not tell."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return Cluster(
        tuple(int(node["CPU"]) for node in nodes),
        tuple(int(node.get("GPU", 0)) for node in nodes),
        tuple(int(node.get("memory", 0) + node.get("object_store_memory", 0)) for node in nodes),
        gpu_memory,
    )


def wait_for_devices(wanted: ClusterResources, emit: Emit) -> None:
    """Ask the autoscaler for what is missing, and wait for it.

    Raises UserError that says what was there when `wait_seconds` were over. Needs a running Ray.
    """
    from ray.autoscaler.sdk import request_resources

    if not _missing(wanted):
        return
    deadline, told = time.monotonic() + wanted.wait_seconds, float("-inf")
    request_resources(num_cpus=wanted.cpus or None, bundles=[{"GPU": 1}] * wanted.gpus)
    try:
        while missing := _missing(wanted):
            now = time.monotonic()
            if now > deadline:
                raise UserError(
                    f"resources.cluster: after {wanted.wait_seconds:g} s the cluster has {missing}.\n"
                    "  `ray status` says what its autoscaler does; more nodes, a higher limit of theirs, a longer "
                    "wait_seconds, or fewer cpus and gpus would do"
                )
            if now - told >= SECONDS_BETWEEN_EVENTS:
                emit(
                    "cluster",
                    message=f"waiting for nodes: the cluster has {missing}",
                    seconds_left=round(deadline - now),
                )
                told = now
            time.sleep(POLL_SECONDS)
    finally:
        # What has come is held by its work; a request that stays would keep idle nodes.
        request_resources(num_cpus=0, bundles=[])


def _missing(wanted: ClusterResources) -> str:
    """What the cluster has of each kind that it has too little of, in words."""
    import ray

    there = ray.cluster_resources()
    kinds = (("CPU", wanted.cpus), ("GPU", wanted.gpus))
    return " and ".join(
        f"{there.get(kind, 0):g} of {number} {kind}s" for kind, number in kinds if there.get(kind, 0) < number
    )


def ask_every_node(function: Callable[..., Any], *arguments: Any, seconds: float) -> Iterator[tuple[str, Any]]:
    """(host, its answer) of a function that every living node runs; a failure is its last line, a str.

    A node that goes away meanwhile is none of them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask: Any = ray.remote(num_cpus=0)(function)
    hosts = _living_nodes()
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments): node
        for node in hosts
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    for answer in ready:
        node = asked[answer]
        try:
            yield hosts[node], ray.get(answer)
        except ray.exceptions.RayError as error:
            raised = isinstance(error, ray.exceptions.RayTaskError)
            if raised or not _goes_away(node):
                yield hosts[node], str(error).strip().splitlines()[-1]
    for answer in late:
        ray.cancel(answer, force=True)
        yield hosts[asked[answer]], f"no answer in {seconds:g} s"


def _goes_away(node: str) -> bool:
    """Whether a node on which a task was lost is declared dead in the time that Ray takes to see it."""
    deadline = time.monotonic() + _NODE_DEATH_SECONDS
    while node in _living_nodes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _living_nodes() -> dict[str, str]:
    """Host names by node id."""
    import ray

    return {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}

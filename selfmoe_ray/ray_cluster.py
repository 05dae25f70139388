"""What the running Ray cluster has, and the wait for what it is to have."""

from __future__ import annotations

import time

from selfmoe_ray.config import ClusterResources
from selfmoe_ray.errors import UserError
from selfmoe_ray.events import Emit
from selfmoe_ray.training.devices import Cluster

POLL_SECONDS, SECONDS_BETWEEN_EVENTS = 1.0, 30.0


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

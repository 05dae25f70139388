"""The doctor's checks on every node of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from selfmoe_ray.diagnosis import Finding, check_nodes, look_at_node

ANSWER_SECONDS = 120


def diagnose_cluster(root: str) -> Iterator[Finding]:
    """Have each node of the cluster that RAY_ADDRESS names look at itself. Raises UserError where there is none,
    or where the root is relative in a submitted job."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from selfmoe_ray.ray_session import check_root, ray_session

    check_root(root)
    with ray_session():
        look: Any = ray.remote(num_cpus=0)(look_at_node)
        alive = [node for node in ray.nodes() if node["Alive"]]
        answers = {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                root
            ): node
            for node in alive
        }
        ready, late = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_SECONDS)
        nodes = []
        for answer in ready:
            try:
                nodes.append(ray.get(answer))
            except ray.exceptions.RayError as error:
                host = answers[answer]["NodeManagerHostname"]
                reason = str(error).strip().splitlines()[-1]
                yield Finding(f"node {host}", "failed", reason, "install selfmoe_ray there, from the same lock")
        for answer in late:
            host = answers[answer]["NodeManagerHostname"]
            yield Finding(f"node {host}", "failed", f"no answer in {ANSWER_SECONDS} s", "look at its logs")
        yield from check_nodes(look_at_node(root), nodes, root)

"""What a cluster's devices have consumed."""

from __future__ import annotations

from selfmoe_ray.energy import read_joules
from selfmoe_ray.ray_diagnosis import ask_every_node

_ANSWER_SECONDS = 30


def cluster_joules() -> dict[str, float]:
    """`read_joules` of each machine that tells, by its name; {} without asking where no node has a GPU."""
    import ray

    if not ray.cluster_resources().get("GPU"):
        return {}
    answers = ask_every_node(read_joules, seconds=_ANSWER_SECONDS)
    return {host: answer for host, answer in answers if isinstance(answer, float)}

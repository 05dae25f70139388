"""How many threads an engine on a CPU computes with, and on which cores."""

from __future__ import annotations

import os

from selfmoe_ray.machines.limits import cores_to_pin, usable_cores

# vLLM's own: a worker's cores, "auto" or "nobind"; and how many cores are left to everything else.
BIND, RESERVED = "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU"


def follow_quota() -> None:
    """Called by each process that loads the plugin: under a CPU quota an engine has as many threads as that grants,
    and pins none. Left alone vLLM pins one to each core of the machine, and all of them stop when the quota is used.

    Nothing happens on a GPU, without a quota, or where `BIND` says what is wanted.
    """
    from vllm.platforms import current_platform

    if BIND in os.environ or cores_to_pin() or not current_platform.is_cpu():
        return
    os.environ[BIND] = "nobind"
    os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() - int(os.environ.get(RESERVED) or 0)))

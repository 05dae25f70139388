"""Keeps what delivers tokens off the CPU cores that an engine computes on.

vLLM pins the threads of a CPU worker, and leaves `VLLM_CPU_NUM_OF_RESERVED_CPU` cores to everything else; but
everything else still runs where it likes, and a step waits for the one thread of it that had to make room.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

import psutil

from selfmoe_ray.engine.threads import RESERVED
from selfmoe_ray.machines.processes import command_line

# The title that Ray gives to Serve's proxy, which is another child of this node's raylet.
PROXY = "ray::ProxyActor"


def keep_off_computing_cores() -> set[int]:
    """Keep this server, what of its engine computes nothing, and the node's proxy off the workers' cores.

    Who sets `RESERVED` knows how many cores these need; where it is not set they roam. Returns the cores that are
    left to them: none where it is not set, where no worker is pinned, as on a GPU
    or with VLLM_CPU_OMP_THREADS_BIND=nobind, or where the workers have all cores.
    """
    if not os.environ.get(RESERVED):
        return set()
    server = psutil.Process()
    allowed = os.sched_getaffinity(0)
    used = {process: cores_of(process) for process in server.children(recursive=True)}
    pinned = {process: cores for process, cores in used.items() if cores and cores < allowed}
    left = allowed.difference(*pinned.values())
    if not pinned or not left:
        return set()
    for process in {server, *used, *_proxies(server)} - set(pinned):
        keep_on(process, left)
    return left


def cores_of(process: psutil.Process) -> set[int]:
    """The cores that any thread of a process may run on."""
    cores: set[int] = set()
    for thread in _threads(process):
        with contextlib.suppress(ProcessLookupError):
            cores |= os.sched_getaffinity(thread)
    return cores


def keep_on(process: psutil.Process, cores: Iterable[int]) -> None:
    """Let all threads of a process, and those that they start, run on these cores only."""
    for thread in _threads(process):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cores)


def _threads(process: psutil.Process) -> list[int]:
    try:
        return [thread.id for thread in process.threads()]
    except psutil.NoSuchProcess:
        return []


def _proxies(server: psutil.Process) -> list[psutil.Process]:
    raylet = server.parent()
    return [each for each in raylet.children() if command_line(each.pid).startswith(PROXY)] if raylet else []

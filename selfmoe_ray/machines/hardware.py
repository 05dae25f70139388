"""What machines have: cores, memory, GPUs."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """What a cluster has: CPUs, GPUs and bytes of memory of each node that runs workers, and the bytes of its
    smallest GPU. What is not known of memory is empty or None."""

    node_cpus: tuple[int, ...]
    node_gpus: tuple[int, ...]
    node_memory: tuple[int, ...] = ()
    gpu_memory: int | None = None


def this_machine() -> Cluster:
    """A cluster of this machine alone."""
    import psutil

    gpus = _gpu_sizes()
    memory = psutil.virtual_memory().total
    return Cluster((len(os.sched_getaffinity(0)),), (len(gpus),), (memory,), min(gpus, default=None))


def gpu_memory() -> int | None:
    """Bytes of this machine's smallest NVIDIA GPU, None where none is seen."""
    return min(_gpu_sizes(), default=None)


def _gpu_sizes() -> list[int]:
    """Bytes of each NVIDIA GPU, as its driver tells; torch would take a context on each to say it."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        mebibytes = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(size) * 2**20 for size in mebibytes]

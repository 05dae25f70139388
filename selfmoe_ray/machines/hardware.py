"""What machines have: cores, memory, GPUs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfmoe_ray.machines.limits import usable_cores, usable_memory

# Of /proc/cpuinfo: instructions that multiply bfloat16 matrices, on x86 and on Arm.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# NVIDIA's compute capability from which on bfloat16 is computed and not imitated.
_BFLOAT16_CAPABILITY = 8.0


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
    gpus = _gpu_sizes()
    return Cluster((usable_cores(),), (len(gpus),), (usable_memory(),), min(gpus, default=None))


def gpu_memory() -> int | None:
    """Bytes of this machine's smallest NVIDIA GPU, None where none is seen."""
    return min(_gpu_sizes(), default=None)


@dataclass(frozen=True)
class FastDtype:
    """The dtype that a machine multiplies matrices in at full pace, and on what, in words. on_gpu: whether that is a
    GPU."""

    dtype: Literal["float32", "bfloat16"]
    device: str
    on_gpu: bool


def fast_dtype() -> FastDtype:
    """bfloat16 where this machine's GPUs, or without one its CPU, have instructions for it, else float32.

    Without them a CPU computes bfloat16 products at about a fifth of float32's pace.
    """
    if capabilities := [float(value) for value in _ask_gpus("compute_cap")]:
        least = min(capabilities)
        return FastDtype(
            "bfloat16" if least >= _BFLOAT16_CAPABILITY else "float32", f"a GPU of compute capability {least:g}", True
        )
    flags = _cpu_flags()
    if found := sorted(_BFLOAT16_FLAGS & flags):
        return FastDtype("bfloat16", f"a CPU with {found[0].upper().replace('_', '-')}", False)
    widest = next((name for name in ("avx512f", "avx2") if name in flags), "")
    return FastDtype("float32", f"a CPU {f'with {widest.upper()} but ' if widest else ''}without BF16 products", False)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())


def _gpu_sizes() -> list[int]:
    """Bytes of each NVIDIA GPU."""
    return [int(mebibytes) * 2**20 for mebibytes in _ask_gpus("memory.total")]


def _ask_gpus(field: str) -> list[str]:
    """What the driver tells of each NVIDIA GPU; torch would take a context on each to say it."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []

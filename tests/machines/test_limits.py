"""What control groups and affinity leave of a machine, read from real groups where this machine lets us make one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfmoe_ray.machines.limits import cpu_quota, memory_limit, usable_cores

CORES = sorted(os.sched_getaffinity(0))
V1 = Path("/sys/fs/cgroup/cpu")
ASK = "from selfmoe_ray.machines.limits import *; import json; print(json.dumps([usable_cores(), cores_to_pin()]))"


def group(root: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A folder of control groups, and the file that says which is the process's."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    (root / "membership").write_text(membership)
    return root, root / "membership"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, 2),
        ("0::/hosts/own/path\n", {"cpu.max": "50000 100000"}, 0.5),
        (
            "3:cpu,cpuacct:/pod\n1:memory:/\n",
            {"cpu,cpuacct/pod/cpu.cfs_quota_us": "300000", "cpu,cpuacct/pod/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
)
def test_the_tightest_quota_of_all_groups_counts(
    tmp_path: Path, membership: str, files: dict[str, str], cores: float | None
) -> None:
    assert cpu_quota(*group(tmp_path, membership, files)) == cores


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/pod\n", {"memory.max": "max", "pod/memory.max": "2147483648"}, 2**31),
        ("9:memory:/\n", {"memory/memory.limit_in_bytes": "1073741824"}, 2**30),
        ("0::/\n", {"memory.max": "max"}, None),
    ],
)
def test_a_memory_limit_is_read_from_either_version(
    tmp_path: Path, membership: str, files: dict[str, str], limit: int | None
) -> None:
    assert memory_limit(*group(tmp_path, membership, files)) == limit


def ask(*before: str) -> list[object]:
    """[usable cores, cores to pin] of a process that is started through a command."""
    told = subprocess.run([*before, sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    return list(json.loads(told.stdout))


def test_affinity_counts() -> None:
    assert ask("taskset", "-c", str(CORES[0])) == [1, CORES[:1]]


@pytest.fixture
def quota() -> Iterator[Path]:
    """A real control group with half a core's time."""
    made = V1 / f"selfmoe-{uuid.uuid4().hex[:8]}"
    try:
        made.mkdir()
        (made / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    yield made
    with contextlib.suppress(OSError):
        made.rmdir()


def test_a_process_under_a_quota_counts_whole_cores_and_pins_none(quota: Path) -> None:
    join = ["sh", "-c", f'echo $$ >{quota}/cgroup.procs; exec "$@"', "sh"]
    assert ask(*join) == [1, CORES if len(CORES) == 1 else []]
    assert usable_cores() <= len(CORES)

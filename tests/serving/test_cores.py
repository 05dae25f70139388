"""Who keeps to which cores, among processes that are pinned as vLLM pins its workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from selfmoe_ray.serving import cores

CORES = os.sched_getaffinity(0)

pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="a single core has no others to keep to")

# An engine of two processes: the first is pinned to the cores in the argument. Prints who ran where afterwards.
SERVER = """
import json, os, subprocess, sys
import psutil
from selfmoe_ray.serving import cores

worker, core = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
os.sched_setaffinity(worker.pid, json.loads(sys.argv[1]))
left = cores.keep_off_computing_cores()
where = [cores.cores_of(psutil.Process(pid)) for pid in (os.getpid(), worker.pid, core.pid)]
print(json.dumps([sorted(each) for each in (left, *where)]))
worker.kill()
core.kill()
"""


@pytest.fixture
def proxy() -> Iterator[psutil.Process]:
    """A child of the server's parent, with the title of Serve's proxy."""
    with subprocess.Popen([cores.PROXY, "60"], executable="/bin/sleep") as process:
        yield psutil.Process(process.pid)
        process.kill()


def serve(pinned: set[int], reserved: str | None = "1") -> list[set[int]]:
    """What was left, and the cores of server, worker and engine core."""
    environment = {name: value for name, value in os.environ.items() if name != cores.RESERVED}
    environment |= {cores.RESERVED: reserved} if reserved else {}
    command = [sys.executable, "-c", SERVER, json.dumps(sorted(pinned))]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    return [set(each) for each in json.loads(done.stdout)]


def test_all_but_the_worker_keep_to_what_it_leaves(proxy: psutil.Process) -> None:
    pinned = {min(CORES)}
    left = CORES - pinned
    assert serve(pinned) == [left, left, pinned, left]
    assert cores.cores_of(proxy) == left


def test_a_process_is_kept_on_cores(proxy: psutil.Process) -> None:
    assert cores.cores_of(psutil.Process()) == CORES
    cores.keep_on(proxy, {min(CORES)})
    assert cores.cores_of(proxy) == {min(CORES)}


@pytest.mark.parametrize(("pinned", "reserved"), [({min(CORES)}, None), (CORES, "1")], ids=["not asked", "not pinned"])
def test_elsewhere_everything_roams(proxy: psutil.Process, pinned: set[int], reserved: str | None) -> None:
    assert serve(pinned, reserved) == [set(), CORES, pinned, CORES]
    assert cores.cores_of(proxy) == CORES

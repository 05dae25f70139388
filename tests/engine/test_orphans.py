"""A killed server takes its engine's processes along, and their shared memory."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from selfmoe_ray.engine import orphans
from selfmoe_ray.machines import processes

SERVER = """
import subprocess, sys
from selfmoe_ray.engine import orphans
orphans.claim()
orphans.follow()
core = "from selfmoe_ray.engine import orphans; orphans.follow(); print('up', flush=True); import time; time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", core], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
process.wait()
"""


def test_the_child_of_a_killed_server_ends() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
    assert server.stdout is not None
    child = os.pidfd_open(int(server.stdout.readline()))
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert select.select([child], [], [], 30)[0], "the child outlived its server by 30 s"


SERVER_OF_ENGINE = """
import os, subprocess, sys, time
from selfmoe_ray.engine import orphans
orphans.claim()
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""
ENGINE = """
import os, time
from multiprocessing import resource_tracker, shared_memory
from selfmoe_ray.engine import orphans
orphans.follow()
segment = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister("/" + segment.name, "shared_memory")
print(os.getpid(), segment.name, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("killed", ["server", "both"])
def test_the_engine_and_its_shared_memory_go_with_the_server(killed: str) -> None:
    command = [sys.executable, "-c", SERVER_OF_ENGINE, ENGINE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid, name = server.stdout.readline().split()
        segment = orphans.SHARED_MEMORY / name
        assert segment.exists() and orphans.sweep() == [], "the server is there"
        if killed == "both":
            os.kill(int(pid), signal.SIGKILL)
        server.kill()
        # Ends when the engine, which holds the other end of the pipe, does.
        assert server.stdout.read() == ""
    if killed == "both":
        assert orphans.sweep() == [name]
    assert not segment.exists()


def test_what_is_not_an_engines_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "SHARED_MEMORY", tmp_path)
    for name in ("psm_12345678", "mx_a", "mxbox_1", f"mx{os.getpid():x}_0a1b", "mx"):
        (tmp_path / name).touch()
    (tmp_path / "mx7fffffff_0a1b").touch()
    assert orphans.sweep() == ["mx7fffffff_0a1b"]
    assert len(list(tmp_path.iterdir())) == 5


def test_a_sweep_waits_for_the_processes_of_its_claim() -> None:
    environment = {**os.environ, orphans.CLAIM: "one"}
    waiting = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(waiting, stdout=subprocess.PIPE, env=environment) as engine:
        assert engine.stdout is not None and engine.stdout.readline()
        assert processes.with_variable(orphans.CLAIM, "one") == [engine.pid]
        assert not processes.with_variable(orphans.CLAIM, "on")
        engine.kill()
    orphans.sweep_after("one", seconds=600)

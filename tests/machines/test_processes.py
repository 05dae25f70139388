from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from selfmoe_ray.machines import processes

NAME = "SELFMOE_RAY_TEST_MARK"


@pytest.fixture
def marked() -> Iterator[subprocess.Popen[bytes]]:
    waiting = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(waiting, stdout=subprocess.PIPE, env=os.environ | {NAME: "one"}) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process
        process.kill()


def test_processes_are_found_by_the_whole_value(marked: subprocess.Popen[bytes]) -> None:
    assert processes.with_variable(NAME, "one") == [marked.pid]
    assert processes.with_variable(NAME, "on") == processes.with_variable(NAME, "one ") == []


def test_waiting_ends_with_the_last_process_or_with_what_is_left(marked: subprocess.Popen[bytes]) -> None:
    assert processes.wait_for_end(NAME, "one", seconds=0.3) == [marked.pid]
    marked.kill()
    assert processes.wait_for_end(NAME, "one", seconds=600) == []


def test_what_does_not_end_by_itself_is_killed(marked: subprocess.Popen[bytes]) -> None:
    processes.end(NAME, "one", grace_seconds=0.3)
    assert marked.wait(timeout=5) == -signal.SIGKILL
    processes.end(NAME, "one", grace_seconds=600)


def test_a_process_is_alive_until_it_ends_whether_or_not_anyone_waits_for_it(marked: subprocess.Popen[bytes]) -> None:
    assert processes.is_alive(marked.pid) and processes.is_alive(os.getpid())
    marked.kill()
    processes.wait_for_end(NAME, "one", seconds=600)
    assert not processes.is_alive(marked.pid), "it is a zombie now"
    marked.wait()
    assert not processes.is_alive(marked.pid)

"""Processes of this machine, known by a variable that they inherited from who started them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

# What the kernel has to take a killed process away.
_KILL_SECONDS = 5


def with_variable(name: str, value: str) -> list[int]:
    """Process ids of those, this one aside, that began with this value in their environment; [] outside Linux."""
    wanted, found = f"{name}={value}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def is_alive(pid: int) -> bool:
    """Whether a process has memory of its own; one that ends gives it up first, its environment with it."""
    try:
        return "\nVmSize:" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def command_line(pid: int) -> str:
    """A process's arguments, which Ray and vLLM make its title; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def wait_for_end(name: str, value: str, seconds: float) -> list[int]:
    """`with_variable`, once that is empty or after so many seconds."""
    deadline = time.monotonic() + seconds
    while (left := with_variable(name, value)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def end(name: str, value: str, grace_seconds: float) -> None:
    """Waits that long for the processes `with_variable` to end, and kills those that have not."""
    for pid in wait_for_end(name, value, grace_seconds):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for_end(name, value, _KILL_SECONDS)

"""Processes of this machine, known by a variable that they inherited from who started them."""

from __future__ import annotations

import contextlib
import os
import time

import psutil

# What the kernel has to take a killed process away.
_KILL_SECONDS = 5


def with_variable(name: str, value: str) -> list[int]:
    """Process ids of those, this one aside, that began with this value in their environment and let us read it."""
    found = psutil.process_iter(["environ"])
    pids = [process.pid for process in found if (process.info["environ"] or {}).get(name) == value]
    return [pid for pid in pids if pid != os.getpid()]


def is_alive(pid: int) -> bool:
    """Whether a process has memory of its own; one that ends gives it up first, its environment with it."""
    try:
        return psutil.Process(pid).memory_info().vms > 0
    except psutil.Error:
        return False


def command_line(pid: int) -> str:
    """A process's arguments, which Ray and vLLM make its title; empty where it has ended."""
    try:
        return " ".join(psutil.Process(pid).cmdline()).strip()
    except psutil.Error:
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
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    wait_for_end(name, value, _KILL_SECONDS)

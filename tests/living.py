"""Processes as tests look for them: one may end, or wait for its parent, while it is looked at."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def command_line(process: psutil.Process) -> str:
    """A process's arguments, which Ray and vLLM make its title; empty where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def find_named(name: str, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that live and have a name in their command line."""
    return [process for process in processes if name in command_line(process)]

"""Processes as tests look for them: one may end, or wait for its parent, while it is looked at."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from selfmoe_ray.machines.processes import command_line


def find_named(name: str, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that live and have a name in their command line."""
    return [process for process in processes if name in command_line(process.pid)]

"""Whose turn it is on a machine's cores: computation first, bookkeeping when a core is free.

Ray's dozen of processes on a machine each wake many times a second, on two cores for about 11 of every 130
core-seconds of generation. When one takes a core from a thread that computes, all threads of that
computation wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# In the environment of an engine whose processes take a core when they wake, whatever those around it do.
TAKES_CORES = "SELFMOE_RAY_TAKES_CORES"
_IS_LINUX = hasattr(os, "SCHED_BATCH")


@contextmanager
def patient_children() -> Iterator[None]:
    """Processes started meanwhile, and theirs, wait for a core instead of taking it when they wake."""
    is_usual = _IS_LINUX and os.sched_getscheduler(0) == os.SCHED_OTHER
    if is_usual:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        if is_usual:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def take_cores() -> None:
    """Where the environment says so, this process and those it starts take a core when they wake."""
    if os.environ.get(TAKES_CORES) and _IS_LINUX and os.sched_getscheduler(0) == os.SCHED_BATCH:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

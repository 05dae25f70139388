"""An engine's processes end with the server that started them, however that one ends, and so does their memory.

vLLM ends its workers with its engine core, but a killed server leaves the core running; and processes that are
killed leave the shared memory of their message queues, 160 MB each.
"""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path

from selfmoe_ray.engine import patches
from selfmoe_ray.machines import processes

SERVER_PID = "MIXSE_SERVER_PID"
# Set for a server whose own code does not call `claim`, such as an actor of Ray Data; any text, by which
# `sweep_after` knows the processes that have it.
CLAIM = "MIXSE_CLAIM"
SHARED_MEMORY = Path("/dev/shm")
# Of an engine's shared memory: this, its server's process id in hexadecimal, and an underscore.
SEGMENT = "mx"


def claim() -> None:
    """Called by the server: the processes that it starts from now on follow it."""
    os.environ[SERVER_PID] = str(os.getpid())
    sweep()


def follow() -> None:
    """Called by each process that loads the plugin: end when the server does.

    Nothing happens where none has claimed it, unless `CLAIM` makes this process the server.
    """
    server = os.environ.get(SERVER_PID)
    if server is None:
        if os.environ.get(CLAIM):
            claim()
        return
    if int(server) == os.getpid():
        return
    # By its name a segment tells whose it is; Python's own length of names leaves room for four digits more.
    patches.apply(patches.SEGMENTS_NAMED, f"/{SEGMENT}{int(server):x}_")
    try:
        handle = os.pidfd_open(int(server))
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=_end_with, args=(handle,), name="follow-server", daemon=True).start()


def sweep() -> list[str]:
    """Remove shared memory of engines whose server is gone; returns its names."""
    gone = []
    for path in SHARED_MEMORY.glob(f"{SEGMENT}*_*"):
        server = path.name.removeprefix(SEGMENT).split("_")[0]
        if _is_hexadecimal(server) and not processes.is_alive(int(server, 16)):
            path.unlink(missing_ok=True)
            gone.append(path.name)
    return gone


def sweep_after(claim: str, seconds: float) -> list[str]:
    """`sweep` once no process of this machine has this value of `CLAIM`, or after so many seconds."""
    processes.wait_for_end(CLAIM, claim, seconds)
    return sweep()


def _is_hexadecimal(text: str) -> bool:
    return bool(text) and set(text) <= set("0123456789abcdef")


def _end_with(handle: int) -> None:
    select.select([handle], [], [])
    sweep()
    os._exit(1)

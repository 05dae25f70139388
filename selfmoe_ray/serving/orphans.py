"""An engine's processes end with the server that started them, however that one ends.

vLLM ends its workers with its engine core, but a killed server leaves the core running, with its memory.
"""

from __future__ import annotations

import os
import select
import threading

SERVER_PID = "MIXSE_SERVER_PID"
# Set for a server whose own code does not call `claim`, such as an actor of Ray Data.
CLAIM = "MIXSE_CLAIM"


def claim() -> None:
    """Called by the server: the processes that it starts from now on follow it."""
    os.environ[SERVER_PID] = str(os.getpid())


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
    try:
        handle = os.pidfd_open(int(server))
    except ProcessLookupError:
        os._exit(1)
    threading.Thread(target=_end_with, args=(handle,), name="follow-server", daemon=True).start()


def _end_with(handle: int) -> None:
    select.select([handle], [], [])
    os._exit(1)

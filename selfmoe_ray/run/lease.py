"""One run directory, one job at a time: a lease in its storage, on whatever filesystem that is."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selfmoe_ray.errors import UserError
from selfmoe_ray.run.storage import Storage

LOCK = "lock.json"
RENEW_SECONDS = 10.0
# How long a holder that is not of this machine is watched for a sign of life. Network filesystems may show a
# file as it was up to a minute before.
WATCH_SECONDS = 75.0
# Two that begin at once have both written by then, and the last to write holds it.
SETTLE_SECONDS = 1.0


@contextmanager
def held(storage: Storage) -> Iterator[None]:
    """Hold the lease of the run in `storage` until the block ends.

    Raises UserError where another job holds it. That of a job which is gone is taken: at once where it ran on
    this machine, else after it was seen not to renew it. No two machines' clocks are compared. A job whose lease
    was taken gets SIGTERM, as one that is stopped.
    """
    mine = {"owner": uuid.uuid4().hex, "process": _process(), "renewals": 0}
    found = _read(storage)
    if found is not None and _is_alive(found, storage):
        raise _refusal(storage)
    storage.write_json(LOCK, mine)
    time.sleep(SETTLE_SECONDS)
    if not _is_mine(storage, mine):
        raise _refusal(storage)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(storage, mine, ended), name="run-lock", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with suppress(OSError, UserError):
            if _is_mine(storage, mine):
                storage.delete(LOCK)


def _renew(storage: Storage, mine: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        mine["renewals"] += 1
        # Storage that refuses for a while is the run's to report, at its next write.
        with suppress(OSError, UserError):
            if not _is_mine(storage, mine):
                # Another took the run for abandoned: two must not write it. Not SIGINT, which a job that a
                # shell began in the background ignores.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return
            storage.write_json(LOCK, mine)


def _read(storage: Storage) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = storage.read_json(LOCK)
    except (FileNotFoundError, ValueError):
        return None
    return found


def _is_mine(storage: Storage, mine: dict[str, Any]) -> bool:
    found = _read(storage)
    return found is None or found["owner"] == mine["owner"]


def _is_alive(found: dict[str, Any], storage: Storage) -> bool:
    """Whether the lease's holder still works."""
    machine, pid, created = found["process"]
    # Where neither tells, it is watched like one elsewhere: pids are reused, and a clock that was set moves `created`.
    if machine == _machine() and (now_there := _created(pid)) in (None, created):
        return now_there is not None
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(RENEW_SECONDS, WATCH_SECONDS) / 5)
        if (now := _read(storage)) is None:
            return False
        if now != found:
            return True
    return False


def _refusal(storage: Storage) -> UserError:
    return UserError(
        f"{storage.path()} is being worked on by another job.\n"
        "  wait for it or stop it (ray job list, ray job stop), or choose another run_name"
    )


def _process() -> list[Any]:
    return [_machine(), os.getpid(), _created(os.getpid())]


def _machine() -> str:
    """A boot of a machine and a container's view of its processes; where neither is told, like no other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def _created(pid: int) -> float | None:
    """When a process of this machine started, in seconds since the epoch; None where none runs under this id."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None

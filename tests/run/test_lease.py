"""Who holds a run, and who takes it from whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.run import lease
from selfmoe_ray.run.lease import LOCK, held
from selfmoe_ray.run.storage import Storage

HOLD = """
import sys, time
from selfmoe_ray.run import lease
from selfmoe_ray.run.storage import Storage
lease.SETTLE_SECONDS = 0
with lease.held(Storage(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 1.0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def test_a_run_is_held_by_one_and_free_afterwards(storage: Storage) -> None:
    with held(storage), pytest.raises(UserError, match="is being worked on by another job"), held(storage):
        pass
    assert not storage.exists(LOCK)
    with held(storage):
        pass


def test_a_killed_job_of_this_machine_leaves_the_run_at_once(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 600.0)
    with subprocess.Popen([sys.executable, "-c", HOLD, storage.root], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError), held(storage):
            pass
        holder.kill()
    with held(storage):
        pass


def test_a_killed_job_that_nobody_waits_for_leaves_the_run_at_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 600.0)
    with subprocess.Popen([sys.executable, "-c", HOLD, storage.root], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        with held(storage):
            pass


@pytest.mark.parametrize("started", ["123456", None, 1.5])
def test_a_lease_whose_start_is_another_is_watched(storage: Storage, started: Any) -> None:
    """By earlier code in ticks since boot, or of a process whose id is another's now."""
    process = [lease._machine(), os.getpid(), started]
    storage.write_json(LOCK, {"owner": "other", "process": process, "renewals": 7})
    with held(storage):
        pass
    with held(storage):
        mine = storage.read_json(LOCK)
        assert mine["process"][:2] == process[:2] and mine["process"][2] != started


def test_a_lease_whose_start_is_another_is_kept_by_who_renews_it(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 600.0)
    created = lease._created
    with held(storage):
        monkeypatch.setattr(lease, "_created", lambda pid: created(pid) + 3600)
        with pytest.raises(UserError), held(storage):
            pass


def test_a_job_elsewhere_that_renews_its_lease_keeps_it(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(storage):
        monkeypatch.setattr(lease, "_machine", lambda: "another machine")
        with pytest.raises(UserError), held(storage):
            pass


def test_a_job_elsewhere_that_renews_nothing_loses_it(storage: Storage) -> None:
    storage.write_json(LOCK, {"owner": "gone", "process": ["another machine", 1, "1"], "renewals": 7})
    with held(storage):
        pass


def test_of_two_that_begin_at_once_the_last_to_write_holds_it(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_writes(_: float) -> None:
        storage.write_json(LOCK, {"owner": "other", "process": ["another machine", 1, "1"], "renewals": 0})

    monkeypatch.setattr(time, "sleep", other_writes)
    with pytest.raises(UserError), held(storage):
        pass
    assert storage.read_json(LOCK)["owner"] == "other"


def test_a_lock_cut_short_holds_nobody(storage: Storage) -> None:
    storage.write_bytes(LOCK, b"{")
    with held(storage):
        pass


@pytest.fixture
def job_in_the_background() -> Iterator[None]:
    """SIGTERM as `command.run_command` has it, and no SIGINT, as a shell leaves it to what it begins with `&`."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_job_whose_run_was_taken_ends_and_leaves_the_lease(storage: Storage, job_in_the_background: None) -> None:
    other = {"owner": "other", "process": ["another machine", 1, "1"], "renewals": 0}
    with pytest.raises(KeyboardInterrupt), held(storage):
        for _ in range(100):
            # A renewal of the same moment may write over it.
            storage.write_json(LOCK, other)
            time.sleep(0.3)
    assert storage.read_json(LOCK) == other

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from selfmoe_ray.scheduling import TAKES_CORES, patient_children

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="a scheduling policy of Linux")


def policy_of_child(before: str = "pass") -> int:
    program = f"import os; from selfmoe_ray.scheduling import take_cores; {before}; print(os.sched_getscheduler(0))"
    return int(subprocess.check_output([sys.executable, "-c", program]))


def test_only_processes_started_meanwhile_are_patient() -> None:
    before = os.sched_getscheduler(0)
    with patient_children():
        assert policy_of_child() == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == before


def test_an_engine_takes_cores_where_its_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with patient_children():
        assert policy_of_child("take_cores()") == os.SCHED_BATCH
        monkeypatch.setenv(TAKES_CORES, "1")
        assert policy_of_child("take_cores()") == os.SCHED_OTHER

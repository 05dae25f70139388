from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from selfmoe_ray.energy import consumed, read_joules


class NvmlError(Exception):
    pass


def driver(millijoules: list[int | None]) -> SimpleNamespace:
    """The bindings of NVIDIA's driver as far as they are used; None: a GPU that does not count."""

    def total(handle: int) -> int:
        found = millijoules[handle]
        if found is None:
            raise NvmlError("not supported")
        return found

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(millijoules),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )


@pytest.mark.parametrize(
    ("counters", "joules"), [([1500, 2500], 4.0), ([], None), ([1500, None], None)], ids=["two", "none", "mute"]
)
def test_all_gpus_are_added_up(
    counters: list[int | None], joules: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver(counters))
    assert read_joules() == joules


def test_without_bindings_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_joules() is None


def test_only_machines_that_were_there_all_along_count() -> None:
    assert consumed({"a": 10.0, "b": 5.0}, {"a": 12.5, "c": 100.0}) == 2.5
    assert consumed({}, {"c": 100.0}) is None

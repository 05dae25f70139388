"""Routing that is kept for later questions."""

from __future__ import annotations

from selfmoe_ray.serving.http.records import RecordStore

ROUTING = {"id": "cmpl-1", "choices": []}


def test_what_was_put_is_got_until_it_is_replaced() -> None:
    store = RecordStore()
    store.put("cmpl-1", ROUTING)
    assert store.get("cmpl-1") == ROUTING and store.get("cmpl-2") is None
    store.put("cmpl-1", {"id": "other"})
    assert store.get("cmpl-1") == {"id": "other"} and len(store.records) == 1


def test_the_oldest_goes_when_memory_is_short() -> None:
    store = RecordStore(max_bytes=100)
    for index in range(10):
        store.put(f"cmpl-{index}", ROUTING)
    assert store.get("cmpl-0") is None and store.get("cmpl-9") == ROUTING
    assert store.nbytes == sum(len(record) for _, record in store.records.values()) <= 100


def test_one_that_is_too_large_is_not_kept() -> None:
    store = RecordStore(max_bytes=10)
    store.put("cmpl-1", ROUTING)
    assert store.get("cmpl-1") is None and store.nbytes == 0


def test_old_ones_are_forgotten() -> None:
    store = RecordStore(max_seconds=-1)
    store.put("cmpl-1", ROUTING)
    assert store.get("cmpl-1") is None

"""The store of shared tensors: one writer, whole entries, read-only maps, nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfmoe_ray.engine.shared_weights.layout import ALIGNMENT, Layout
from selfmoe_ray.engine.shared_weights.store import INDEX, WEIGHTS, WeightStore
from selfmoe_ray.errors import UserError

KEY = {"base": "0123"}
VALUES = {
    "a.weight": torch.arange(15, dtype=torch.bfloat16).view(3, 5),
    "b.weight": torch.arange(4.0),
    "empty": torch.empty(0, 7),
    "scalar": torch.tensor(3.5),
}
LAYOUT = Layout.of(VALUES)
SPAWN = multiprocessing.get_context("spawn")


def fill(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(VALUES[name])


def never(_: dict[str, torch.Tensor]) -> None:
    raise AssertionError("there was an entry to map")


def assert_values(tensors: dict[str, torch.Tensor]) -> None:
    assert list(tensors) == list(VALUES)
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, VALUES[name], atol=0, rtol=0)


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "store")


def entry(store: WeightStore) -> Path:
    return store.root / LAYOUT.entry_name(KEY)


def test_the_second_maps_what_the_first_made(store: WeightStore) -> None:
    first = store.open(KEY, LAYOUT, fill)
    second = WeightStore(store.root).open(KEY, LAYOUT, never)
    assert (first.created, second.created) == (True, False)
    assert_values(first.tensors)
    assert_values(second.tensors)
    assert all(each.data_ptr() % ALIGNMENT == 0 for each in second.tensors.values())
    first.release()
    assert_values(WeightStore(store.root).open(KEY, LAYOUT, never).tensors)


def test_an_entry_goes_with_its_last_user(store: WeightStore) -> None:
    first = store.open(KEY, LAYOUT, fill)
    second = store.open(KEY, LAYOUT, never)
    first.release()
    assert entry(store).exists()
    second.release()
    assert list(store.root.iterdir()) == []
    assert_values(second.tensors)


def test_keys_and_layouts_have_entries_of_their_own(store: WeightStore) -> None:
    other_layout = Layout.of({**VALUES, "b.weight": torch.arange(5.0)})
    found = [
        store.open(KEY, LAYOUT, fill),
        store.open({"base": "4567"}, LAYOUT, fill),
        store.open(KEY, other_layout, lambda tensors: None),
    ]
    assert [each.created for each in found] == [True, True, True]


def test_a_write_to_a_mapped_tensor_ends_the_writer_only(store: WeightStore) -> None:
    mine = store.open(KEY, LAYOUT, fill)
    writer = SPAWN.Process(target=_write_to_tensor, args=(store.root,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGSEGV
    assert_values(mine.tensors)


def _write_to_tensor(root: Path) -> None:
    WeightStore(root).open(KEY, LAYOUT, never).tensors["b.weight"].zero_()


def test_of_two_writers_one_waits_and_maps(store: WeightStore) -> None:
    entered, go = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    def slow(tensors: dict[str, torch.Tensor]) -> None:
        entered.set()
        assert go.wait(30)
        fill(tensors)

    def ask(name: str, make: Callable[[dict[str, torch.Tensor]], None]) -> None:
        found[name] = WeightStore(store.root).open(KEY, LAYOUT, make)

    first = threading.Thread(target=ask, args=("first", slow))
    first.start()
    assert entered.wait(30)
    second = threading.Thread(target=ask, args=("second", never))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    # A sweep leaves alone what is being written.
    store.sweep()
    go.set()
    first.join(30)
    second.join(30)
    assert (found["first"].created, found["second"].created) == (True, False)
    assert_values(found["second"].tensors)


def _die_while_writing(root: Path) -> None:
    def die(tensors: dict[str, torch.Tensor]) -> None:
        tensors["a.weight"].zero_()
        os.kill(os.getpid(), signal.SIGKILL)

    WeightStore(root).open(KEY, LAYOUT, die)


def test_a_killed_writer_leaves_no_entry(store: WeightStore) -> None:
    writer = SPAWN.Process(target=_die_while_writing, args=(store.root,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert not entry(store).exists()
    assert any(path.suffix == ".tmp" for path in store.root.iterdir())
    again = store.open(KEY, LAYOUT, fill)
    assert again.created
    assert_values(again.tensors)
    assert not any(path.suffix == ".tmp" for path in store.root.iterdir())


def _hold_until_killed(root: Path, ready: Any) -> None:
    mapped = WeightStore(root).open(KEY, LAYOUT, fill)
    ready.set()
    signal.pause()
    assert mapped


def test_what_killed_users_leave_is_removed_by_the_next(store: WeightStore) -> None:
    ready = SPAWN.Event()
    user = SPAWN.Process(target=_hold_until_killed, args=(store.root, ready))
    user.start()
    assert ready.wait(60)
    store.sweep()
    assert entry(store).exists()
    user.kill()
    user.join(60)
    store.open({"base": "another"}, LAYOUT, fill)
    assert not entry(store).exists()


def test_a_writer_that_fails_leaves_nothing(store: WeightStore) -> None:
    def fail(_: dict[str, torch.Tensor]) -> None:
        raise UserError("damaged checkpoint")

    with pytest.raises(UserError, match="damaged checkpoint"):
        store.open(KEY, LAYOUT, fail)
    assert store.open(KEY, LAYOUT, fill).created


def _flip(folder: Path) -> None:
    (folder / WEIGHTS).chmod(0o600)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def _truncate(folder: Path) -> None:
    (folder / WEIGHTS).chmod(0o600)
    os.truncate(folder / WEIGHTS, LAYOUT.nbytes - 1)


def _no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def _half_index(folder: Path) -> None:
    (folder / INDEX).write_text((folder / INDEX).read_text()[:-5])


def _no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize("damage", [_flip, _truncate, _no_index, _half_index, _no_weights])
def test_a_damaged_entry_is_made_anew(store: WeightStore, damage: Callable[[Path], None]) -> None:
    holder = store.open(KEY, LAYOUT, fill)
    damage(entry(store))
    found = store.open(KEY, LAYOUT, fill)
    assert found.created
    assert_values(found.tensors)
    assert holder.tensors


def test_too_little_room_is_said_with_sizes(store: WeightStore) -> None:
    huge = Layout((("a", "float32", (2**50,)),))
    with pytest.raises(UserError, match=r"need 4294967296 MiB and \d+ MiB are free"):
        store.open(KEY, huge, never)
    assert not any(path.suffix == ".tmp" for path in store.root.iterdir())


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "open"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(UserError, match="no other can write to"):
        WeightStore(root)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="no other can write to"):
        WeightStore(tmp_path / "link")

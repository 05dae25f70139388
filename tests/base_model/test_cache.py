"""What the cache holds after makers that wait for each other, fail, or left damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from selfmoe_ray.base_model.cache import cached

MAKE = """
import sys, time
from selfmoe_ray.base_model.cache import cached
def make(path):
    print("made", flush=True)
    time.sleep(1)
    path.write_text("whole")
print(cached("room/thing", make).read_text())
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFMOE_RAY_CACHE", str(tmp_path))
    return tmp_path


def test_of_two_processes_one_makes_and_both_have_it(cache: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", MAKE], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=60)[0] for process in both) == ["made\nwhole\n", "whole\n"]


def test_what_fails_leaves_nothing_and_is_tried_again(cache: Path) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            cached("room/thing", fail)
        assert [path.name for path in (cache / "room").iterdir()] == ["thing.lock"]
    assert cached("room/thing", Path.mkdir).is_dir()


def write_whole(path: Path) -> None:
    path.write_text("whole")


@pytest.mark.parametrize("left", ["thing", "thing.partial"])
def test_what_is_damaged_or_half_made_is_made_anew(cache: Path, left: str) -> None:
    (cache / "room" / left).mkdir(parents=True)
    (cache / "room" / left / "half").touch()
    made = cached("room/thing", write_whole, Path.is_file)
    assert made.read_text() == "whole"
    assert cached("room/thing", lambda _: pytest.fail("it is there"), Path.is_file) == made
    assert not (cache / "room" / "thing.partial").exists()

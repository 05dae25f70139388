from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.run.storage import Storage


def test_files_and_folders(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "run"))
    storage.write_json("a/b.json", {"é": [1, 2]})
    storage.write_jsonl("a/c.jsonl", [{"x": "line\u2028break"}, {"x": 2}])
    assert storage.read_json("a/b.json") == {"é": [1, 2]}
    assert storage.read_jsonl("a/c.jsonl") == [{"x": "line\u2028break"}, {"x": 2}]
    assert storage.list_files("a") == ["a/b.json", "a/c.jsonl"] and storage.list_files("none") == []
    storage.write_json("a/d/e.json", {})
    assert storage.list_folders("a") == ["a/d"] and storage.list_folders("none") == []
    storage.delete("a")
    assert not storage.exists("a")
    storage.delete("a")


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    """A file-size limit stands for a full disk; it holds for a child process only."""
    script = (
        "import resource, sys, signal\n"
        "from selfmoe_ray.run.storage import Storage\n"
        "from selfmoe_ray.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "storage = Storage(sys.argv[1])\n"
        "storage.write_bytes('f', b'old')\n"
        "try:\n    storage.write_bytes('f', b'x' * 2000)\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout and "what is already written is kept" in done.stdout
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with storage.local_folder_to_write("experts/math") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "w").write_text("1")
    assert storage.read_bytes("experts/math/deep/w") == b"1"
    with pytest.raises(RuntimeError), storage.local_folder_to_write("experts/math") as folder:
        (folder / "other").write_text("2")
        raise RuntimeError
    assert storage.exists("experts/math/deep/w") and os.listdir(tmp_path / "experts") == ["math"]
    with storage.local_folder_to_read("experts/math") as folder:
        assert (folder / "deep" / "w").read_text() == "1"


def test_an_unknown_kind_of_root_is_refused() -> None:
    with pytest.raises(UserError, match="root: cannot open 'ftp://x/y'"):
        Storage("ftp://x/y").exists("a")

from __future__ import annotations

from pathlib import Path

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.run.records import Completion, Example, Reject, Seed
from selfmoe_ray.run.run_dir import RunDir


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path), "first")


def test_rows_come_back_as_written(run_dir: RunDir) -> None:
    parts = {
        part: [Completion(f"math/{part}/0", "math", "brainstorm", "text\n", "stop", 3, 4, "")]
        for part in ("000-0001", "000-0000")
    }
    for part, rows in parts.items():
        run_dir.write_part("math", "brainstorm", part, rows)
    assert run_dir.read_parts("math", "brainstorm") == parts
    assert list(run_dir.read_parts("math", "brainstorm")) == ["000-0000", "000-0001"]
    assert run_dir.read_parts("math", "respond") == {}

    examples = [Example("math/0", "math", "Add.", "1 1", "2")]
    rejects = [Reject("math/1", "math", "respond", "truncated", "é\u2028")]
    run_dir.write_examples("math", examples, rejects)
    assert run_dir.read_examples("math") == examples
    assert run_dir.read_rejects("math") == rejects

    shown, held_out = [Seed("a", "", "b")], [Seed("c", "d", "e")]
    run_dir.write_seeds("math", shown, held_out)
    assert run_dir.read_seeds("math", held_out=False) == shown
    assert run_dir.read_seeds("math", held_out=True) == held_out


def test_manifest_hash_follows_settings_and_inputs_not_counts(run_dir: RunDir) -> None:
    def hash_of(settings: dict[str, int], inputs: dict[str, str], seconds: float) -> str:
        run_dir.write_manifest("x", settings, inputs, {}, seconds)
        return run_dir.manifest_hash("x")

    first = hash_of({"a": 1}, {}, 1.0)
    assert hash_of({"a": 1}, {}, 2.0) == first
    assert len({first, hash_of({"a": 2}, {}, 1.0), hash_of({"a": 1}, {"b": "c"}, 1.0)}) == 3
    with pytest.raises(UserError, match="is not finished"):
        run_dir.manifest_hash("y")

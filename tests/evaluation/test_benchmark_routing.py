"""The routing of benchmarks: which are traced, and what is kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from selfmoe_ray.evaluation.benchmark_routing import ROUTING, benchmarks_to_trace, keep_routing, spread, summarise
from selfmoe_ray.run.run_dir import RunDir


def test_items_are_spread() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(2), 8) == [0, 1]


def test_traces_are_summed_over_tokens() -> None:
    short = np.array([[[1.0, 0.0]], [[0.0, 0.5]]], dtype=np.float32)
    long = np.array([[[1.0, 0.0]] * 3, [[0.5, 0.0]] * 3], dtype=np.float32)
    found = summarise([short, long], ["math", "coding"])
    assert (found["items"], found["tokens"], found["experts"]) == (2, 4, ["math", "coding"])
    assert found["layers"]["top1_share"] == [[1.0, 0.0], [0.75, 0.25]]
    assert found["top1_share"] == pytest.approx([0.875, 0.125])
    assert found["mean_gate"] == pytest.approx([0.6875, 0.0625])


def test_a_benchmark_is_traced_once_for_each_mixture(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path), "run")
    run_dir.write_manifest(run_dir.MIXSE, {"seed": 0}, {}, {}, 1.0)
    benchmarks: list[Any] = [SimpleNamespace(benchmark=SimpleNamespace(name=name)) for name in ("a", "b")]
    assert benchmarks_to_trace(benchmarks, 0, run_dir) == []
    keep_routing(benchmarks[0], 8, {"tokens": 5}, run_dir)
    assert benchmarks_to_trace(benchmarks, 8, run_dir) == benchmarks[1:]
    assert benchmarks_to_trace(benchmarks, 9, run_dir) == benchmarks
    keep_routing(benchmarks[1], 8, {"tokens": 6}, run_dir)
    assert {name: each["tokens"] for name, each in run_dir.storage.read_json(ROUTING).items()} == {"a": 5, "b": 6}
    run_dir.write_manifest(run_dir.MIXSE, {"seed": 1}, {}, {}, 1.0)
    assert benchmarks_to_trace(benchmarks, 8, run_dir) == benchmarks

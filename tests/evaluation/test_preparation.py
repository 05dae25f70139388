"""Benchmarks with their draws of few-shot examples, and the items that leaked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.benchmarks import Benchmark
from selfmoe_ray.evaluation.preparation import find_leaked, load_benchmarks, read_leaked
from selfmoe_ray.evaluation.tasks import TaskSource
from selfmoe_ray.run.events import silent
from selfmoe_ray.run.records import Example
from selfmoe_ray.run.run_dir import RunDir
from tests.evaluation.tiny_tasks import ROWS, write_tiny_tasks


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskSource:
    monkeypatch.setenv("SELFMOE_RAY_CACHE", str(tmp_path / "cache"))
    return TaskSource(task_files=str(write_tiny_tasks(tmp_path / "tasks")), fewshot_seed=5)


def test_draws_are_other_prompts_for_the_same_items(source: TaskSource) -> None:
    first, second, third = load_benchmarks([Benchmark("tiny", "tiny_generation")], source, 3, silent)
    assert [each.benchmark.name for each in (first, second, third)] == ["tiny", "tiny.draw2", "tiny.draw3"]
    assert [each.fewshot_seed for each in (first, second, third)] == [5, 6, 7]
    assert first.items == second.items == third.items
    prompts = [tuple(each.prompt_hashes.values()) for each in (first, second, third)]
    assert len(set(prompts)) == 3


def test_draws_without_examples_are_left_out(source: TaskSource) -> None:
    messages: list[Any] = []
    benchmark = Benchmark("tiny", "tiny_generation", num_fewshot=0)
    loaded = load_benchmarks([benchmark], source, 3, lambda kind, **fields: messages.append(fields["message"]))
    assert [each.benchmark.name for each in loaded] == ["tiny"] and messages[-1] == "draws make no difference"
    with pytest.raises(UserError, match="--draws: 0 given"):
        load_benchmarks([benchmark], source, 0, silent)


def test_an_item_that_stands_in_a_generated_row_is_leaked(source: TaskSource, tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path), "run")
    loaded = load_benchmarks([Benchmark("tiny", "tiny_generation")], source, 1, silent)
    (item, text), *_ = loaded[0].texts.items()
    assert read_leaked(run_dir) == {}
    run_dir.write_examples("math", [Example("math/0", "math", "Say:", text, "and more")], [])
    find_leaked(loaded, run_dir, silent)
    assert item in read_leaked(run_dir)["tiny"] and len(read_leaked(run_dir)["tiny"]) <= ROWS

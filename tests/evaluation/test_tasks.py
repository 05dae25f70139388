"""What can be wrong with a task's name or its data, and what is said then."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.benchmarks import Benchmark, preset, select_benchmarks
from selfmoe_ray.evaluation.harness import load_benchmark
from selfmoe_ray.evaluation.tasks import TaskSource, check_names, load_task, task_manager
from tests.evaluation.tiny_tasks import write_tiny_tasks


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFMOE_RAY_CACHE", str(tmp_path / "cache"))


def source(tmp_path: Path, **settings: bool) -> TaskSource:
    (tmp_path / "data").mkdir()
    return TaskSource(str(tmp_path / "data"), str(write_tiny_tasks(tmp_path / "tasks")), **settings)


def test_an_unknown_task_has_its_nearest_names_offered(tmp_path: Path) -> None:
    manager = task_manager(source(tmp_path), include_defaults=False)
    with pytest.raises(UserError, match="no task 'tiny_generations'; did you mean tiny_generation"):
        check_names([Benchmark("tiny_choice", "tiny_choice"), Benchmark("x", "tiny_generations")], manager)


def test_model_written_code_needs_its_flag(tmp_path: Path) -> None:
    given = source(tmp_path)
    with pytest.raises(UserError, match="--run-model-written-code"):
        load_task("tiny_code", given, task_manager(given, include_defaults=False))


def test_programs_run_in_the_sandboxed_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    given = source(tmp_path, run_model_written_code=True)
    manager = task_manager(given, include_defaults=False)
    loaded = load_benchmark(Benchmark("tiny_program", "tiny_program", limit=3), given, manager)
    programs = ["def plus_one(n): return n + 1", "def plus_one(n): return 1", "import socket; socket.socket()"]
    items = loaded.score(loaded.items, programs)
    assert [item.metrics["passed,none"] for item in items] == [1.0, 0.0, 0.0]
    assert loaded.summary(items)["metrics"]["passed,none"]["score"] == pytest.approx(1 / 3)


def test_missing_data_names_the_folder_that_was_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    given = source(tmp_path, run_model_written_code=True)
    with pytest.raises(UserError, match=f"wanted the folder {tmp_path}/data/no/such-programs"):
        load_task("tiny_code", given, task_manager(given, include_defaults=False))


def test_a_data_root_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data-root: 'nowhere' is no folder"):
        task_manager(TaskSource(data_root="nowhere"), include_defaults=False)


def test_the_papers_benchmarks_are_tasks_of_lm_eval() -> None:
    manager = task_manager(TaskSource())
    check_names(preset("full"), manager)
    for benchmark in preset("full"):
        entry = manager.task_index[benchmark.task]
        assert entry.cfg["task"], benchmark
    with pytest.raises(UserError, match=r"did you mean .*gsm8k"):
        check_names(select_benchmarks(["gsm8kk"], None), manager)


def test_benchmarks_are_chosen_by_name_or_preset() -> None:
    assert [(each.name, each.limit) for each in select_benchmarks(["gsm8k", "arc_easy"], 5)] == [
        ("gsm8k", 5),
        ("arc_easy", 5),
    ]
    paper = {each.name: each for each in select_benchmarks(["paper"], None)}
    assert len(paper) == 11 and paper["gsm8k"].limit == 200 and paper["mmlu"].limit is None
    assert {each.limit for each in select_benchmarks(["full"], None)} == {None}
    with pytest.raises(UserError, match="gsm8k is listed more than once"):
        select_benchmarks(["gsm8k", "paper"], None)
    with pytest.raises(UserError, match="--limit: 0 given"):
        select_benchmarks(["gsm8k"], 0)


def test_a_benchmark_may_have_a_limit_of_its_own() -> None:
    chosen = select_benchmarks(["mmlu:1", "gsm8k", "arc_easy:7"], 5)
    assert [(each.name, each.limit) for each in chosen] == [("mmlu", 1), ("gsm8k", 5), ("arc_easy", 7)]
    assert {each.limit for each in select_benchmarks(["paper:3"], None)} == {3}
    for wrong in ("gsm8k:0", "gsm8k:x", "gsm8k:"):
        with pytest.raises(UserError, match=f"'{wrong}' limits a benchmark"):
            select_benchmarks([wrong], None)

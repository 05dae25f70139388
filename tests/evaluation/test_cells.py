"""Resuming, refusing and finishing an evaluation; items are answered by the number of the document."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.benchmarks import Benchmark
from selfmoe_ray.evaluation.cells import Answers, Cell, Evaluation, EvaluationSettings, Shard
from selfmoe_ray.evaluation.harness import LoadedBenchmark, load_benchmark
from selfmoe_ray.evaluation.tasks import TaskSource, task_manager
from selfmoe_ray.run.run_dir import RunDir
from tests.evaluation.tiny_tasks import ROWS, write_tiny_tasks

SETTINGS = EvaluationSettings(mixture="abc", dtype="float32", max_model_len=128)


class Worker:
    """Answers shards in reverse order, and dies after so many."""

    def __init__(self, dies_after: int = 1000):
        self.items: list[tuple[str, Any]] = []
        self._left = dies_after

    def answer(self, shards: Iterable[Shard]) -> Iterator[Answers]:
        for shard in reversed(list(shards)):
            if not self._left:
                raise RuntimeError("the worker died")
            self._left -= 1
            self.items += [(shard.cell.system, item) for item in shard.items]
            text = {"base": "a", "mixse": "ab"}[shard.cell.system]
            yield Answers(shard, [text * (index + 1) for index in range(len(shard.requests))], 0.5)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskSource:
    monkeypatch.setenv("SELFMOE_RAY_CACHE", str(tmp_path / "cache"))
    return TaskSource(task_files=str(write_tiny_tasks(tmp_path / "tasks")))


def load(source: TaskSource, limit: int | None = None) -> LoadedBenchmark:
    manager = task_manager(source, include_defaults=False)
    return load_benchmark(Benchmark("tiny", "tiny_generation", limit=limit), source, manager)


@pytest.fixture
def benchmark(source: TaskSource) -> LoadedBenchmark:
    return load(source)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path), "run")


def plan(benchmark: LoadedBenchmark, run_dir: RunDir, events: list[dict[str, Any]] | None = None) -> Evaluation:
    cells = [Cell(system, gate, benchmark) for system, gate in (("base", "base"), ("mixse", "router"))]

    def emit(kind: str, **fields: Any) -> None:
        if events is not None:
            events.append(fields)

    return Evaluation(cells, SETTINGS, run_dir, emit)


def test_a_stopped_evaluation_answers_only_what_is_missing(benchmark: LoadedBenchmark, run_dir: RunDir) -> None:
    first, second = Worker(dies_after=2), Worker()
    with pytest.raises(RuntimeError):
        plan(benchmark, run_dir).run(first.answer, shard_size=3)
    assert len(first.items) == 4 and run_dir.read_manifest("eval/base/tiny") is None
    events: list[dict[str, Any]] = []
    plan(benchmark, run_dir, events).run(second.answer, shard_size=2)
    assert len(first.items + second.items) == 2 * ROWS == len(set(first.items + second.items))
    for system, score in (("base", 1.0), ("mixse", 2.0)):
        folder = f"eval/{system}/tiny"
        assert run_dir.storage.read_json(f"{folder}/scores.json")["metrics"]["distinct,none"]["score"] == score
        samples = run_dir.storage.read_jsonl(f"{folder}/samples.jsonl")
        assert [sample["doc_id"] for sample in samples] == list(range(ROWS))
        assert run_dir.read_manifest(folder)["counts"] == {"items": ROWS}  # type: ignore[index]
        assert not run_dir.storage.exists(f"{folder}/parts")
    assert events[-1]["message"] == "finished" and {event["benchmark"] for event in events} == {"tiny"}


def test_all_answered_and_not_finished(benchmark: LoadedBenchmark, run_dir: RunDir) -> None:
    """Stopped between the last shard and the manifest."""
    plan(benchmark, run_dir).run(Worker().answer, shard_size=4)
    samples = run_dir.storage.read_jsonl("eval/base/tiny/samples.jsonl")
    run_dir.storage.write_jsonl("eval/base/tiny/parts/part-000000.jsonl", samples)
    run_dir.storage.delete("eval/base/tiny/manifest.json")
    worker = Worker()
    plan(benchmark, run_dir).run(worker.answer, shard_size=4)
    assert not worker.items and run_dir.read_manifest("eval/base/tiny")


def test_what_is_finished_is_not_done_again_and_other_settings_are_refused(
    benchmark: LoadedBenchmark, run_dir: RunDir
) -> None:
    plan(benchmark, run_dir).run(Worker().answer, shard_size=100)
    assert plan(benchmark, run_dir).unfinished == []
    other = EvaluationSettings(mixture="abc", dtype="bfloat16", max_model_len=128)
    with pytest.raises(UserError, match=r"dtype = 'float32'.*'bfloat16'(.|\n)*--redo base/tiny"):
        Evaluation([Cell("base", "base", benchmark)], other, run_dir, lambda kind, **fields: None)


@pytest.mark.parametrize("dies_after", [1, 1000], ids=["unfinished", "finished"])
def test_more_items_keep_what_is_answered(source: TaskSource, run_dir: RunDir, dies_after: int) -> None:
    few, more = (load(source, limit) for limit in (4, None))
    first, second = Worker(dies_after), Worker()
    with contextlib.suppress(RuntimeError):
        plan(few, run_dir).run(first.answer, shard_size=4)
    plan(more, run_dir).run(second.answer, shard_size=2)
    answered = first.items + second.items
    assert first.items and len(answered) == 2 * ROWS == len(set(answered))
    assert run_dir.read_manifest("eval/base/tiny")["counts"] == {"items": ROWS}  # type: ignore[index]
    with pytest.raises(UserError, match=r"limit = None.*asks for 4"):
        plan(few, run_dir)


def test_items_whose_prompt_has_changed_are_answered_anew(source: TaskSource, run_dir: RunDir) -> None:
    few, more = (load(source, limit) for limit in (4, None))
    plan(few, run_dir).run(Worker().answer, shard_size=4)
    samples = run_dir.storage.read_jsonl("eval/base/tiny/samples.jsonl")
    samples[2]["prompt_hash"] = "another"
    run_dir.storage.write_jsonl("eval/base/tiny/samples.jsonl", samples)
    worker = Worker()
    plan(more, run_dir).run(worker.answer, shard_size=100)
    assert [item for system, (_, item) in worker.items if system == "base"] == [2, *range(4, ROWS)]


def test_parts_of_other_settings_are_not_mixed(benchmark: LoadedBenchmark, run_dir: RunDir) -> None:
    with pytest.raises(RuntimeError):
        plan(benchmark, run_dir).run(Worker(dies_after=1).answer, shard_size=3)
    other = EvaluationSettings(mixture="another", dtype="float32", max_model_len=128)
    with pytest.raises(UserError, match="mixture"):
        Evaluation([Cell("mixse", "router", benchmark)], other, run_dir, lambda kind, **fields: None)

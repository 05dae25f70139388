"""A tiny mixture on vLLM through lm-eval's code: any number of shards, and lm-eval's own transformers backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.evaluation.benchmarks import Benchmark
from selfmoe_ray.evaluation.harness import Item, LoadedBenchmark, load_benchmark, respond
from selfmoe_ray.evaluation.tasks import TaskSource, task_manager
from tests.evaluation.tiny_tasks import write_tiny_tasks

pytestmark = [pytest.mark.serving, pytest.mark.timeout(1200)]

TASKS = ("tiny_generation", "tiny_choice")
ENGINE = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_batched_tokens": 512,
    "enable_chunked_prefill": False,
    "enforce_eager": True,
    "max_num_seqs": 8,
    "block_size": 32,
}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LoadedBenchmark]]:
    folder = tmp_path_factory.mktemp("tasks")
    source = TaskSource(task_files=str(write_tiny_tasks(folder)))
    manager = task_manager(source, include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFMOE_RAY_CACHE", str(folder / "root"))
        yield {task: load_benchmark(Benchmark(task, task), source, manager) for task in TASKS}


@pytest.fixture
def lm(mixse_dir: Callable[..., Path], cpu_engines: None) -> Iterator[Any]:
    from selfmoe_ray.evaluation.gated_lm import GatedLM

    lm = GatedLM(str(mixse_dir()), **ENGINE)
    yield lm
    lm.close()


def answered(loaded: LoadedBenchmark, size: int, answer: Callable[[list[Any]], list[Any]]) -> list[Item]:
    items = loaded.items
    shards = [items[start : start + size] for start in range(0, len(items), size)]
    return [item for shard in shards for item in loaded.score(shard, answer(loaded.requests(shard)))]


def texts_of(items: list[Item]) -> list[str]:
    """Without a last character that is cut short: transformers shows it as U+FFFD, vLLM leaves it out."""
    return [item.responses[0].rstrip("\ufffd") for item in items]


def log_likelihoods(items: list[Item]) -> list[float]:
    return [value for item in items for value, _ in item.responses]


def test_scores_by_shards_by_gate_and_by_transformers(
    lm: Any, benchmarks: dict[str, LoadedBenchmark], tiny_model_dir: Callable[..., Path]
) -> None:
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(str(tiny_model_dir()), device="cpu", dtype="float32", max_length=512, batch_size=1)
    for task, loaded in benchmarks.items():
        total = len(loaded.items)
        of_gate: dict[str, list[Item]] = {}
        for gate in ("base", "router", "random", "math"):
            whole = answered(loaded, total, lambda requests, gate=gate: lm.respond(gate, requests))
            pieces = answered(loaded, -(-total // 3), lambda requests, gate=gate: lm.respond(gate, requests))
            assert loaded.summary(whole) == loaded.summary(pieces)
            of_gate[gate] = whole
        expected = answered(loaded, total, lambda requests: respond(theirs, requests))
        assert loaded.summary(of_gate["base"]) == loaded.summary(expected)
        if task == "tiny_generation":
            texts = {gate: texts_of(items) for gate, items in of_gate.items()}
            assert texts["base"] == texts_of(expected)
            assert len(set(map(tuple, texts.values()))) == len(texts)
        else:
            found = log_likelihoods(of_gate["base"])
            assert found == pytest.approx(log_likelihoods(expected), abs=1e-3)
            assert found != pytest.approx(log_likelihoods(of_gate["math"]), abs=1e-1)


def test_sampled_texts_do_not_depend_on_their_neighbours(lm: Any, benchmarks: dict[str, LoadedBenchmark]) -> None:
    loaded = benchmarks["tiny_generation"]
    requests = loaded.requests(loaded.items)
    for request in requests:
        request.arguments = (request.args[0], {**request.args[1], "do_sample": True, "temperature": 1.0})
    together = lm.respond("router", requests + requests)
    alone = [lm.respond("router", [request])[0] for request in requests]
    assert together[: len(requests)] == alone
    assert together[len(requests) :] != alone

"""Items, shards and scores of tiny local tasks, answered by a model that is a function of the prompt."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.evaluation.benchmarks import Benchmark
from selfmoe_ray.evaluation.harness import Item, LoadedBenchmark, load_benchmark, respond
from selfmoe_ray.evaluation.tasks import TaskSource, task_manager
from tests.evaluation.tiny_tasks import ROWS, write_tiny_tasks


class HashModel:
    """Answers that differ from prompt to prompt."""

    def generate_until(self, requests: list[Any], disable_tqdm: bool) -> list[str]:
        return [str(zlib.crc32(request.args[0].encode())) for request in requests]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool) -> list[tuple[float, bool]]:
        return [(-float(zlib.crc32("".join(request.args).encode()) % 1000), False) for request in requests]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = write_tiny_tasks(tmp_path_factory.mktemp("tasks"))
    source = TaskSource(task_files=str(folder))
    manager = task_manager(source, include_defaults=False)

    def loaded(task: str, **settings: Any) -> LoadedBenchmark:
        return load_benchmark(Benchmark(task, task, **settings), source, manager)

    loaded.source = source  # type: ignore[attr-defined]
    return loaded


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFMOE_RAY_CACHE", str(tmp_path / "cache"))


def items_in_shards(loaded: LoadedBenchmark, size: int) -> list[Item]:
    items, model = loaded.items, HashModel()
    shards = [items[start : start + size] for start in range(0, len(items), size)]
    return [item for shard in reversed(shards) for item in loaded.score(shard, respond(model, loaded.requests(shard)))]


@pytest.mark.parametrize("task", ["tiny_generation", "tiny_choice"])
def test_scores_do_not_depend_on_shards_and_survive_json(task: str, load: Any) -> None:
    loaded = load(task)
    whole = items_in_shards(loaded, len(loaded.items))
    pieces = [Item(**json.loads(json.dumps(vars(item)))) for item in items_in_shards(loaded, 2)]
    assert loaded.summary(whole) == loaded.summary(pieces)
    assert {item.id: item for item in whole} == {item.id: item for item in pieces}


def test_scores_are_those_of_lm_evals_own_evaluation(load: Any) -> None:
    """Few-shot examples, prompts, filters and aggregation over a group included."""
    import lm_eval
    from lm_eval.api.model import LM

    class HashLM(HashModel, LM):  # type: ignore[misc]
        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return super().generate_until(requests, disable_tqdm)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm)

    for task, key in (("tiny_generation", "distinct,none"), ("tiny_choice", "acc,none")):
        loaded = load(task, limit=5, num_fewshot=3)
        ours = loaded.summary(items_in_shards(loaded, 2))
        manager = task_manager(load.source, include_defaults=False)
        theirs = lm_eval.simple_evaluate(HashLM(), tasks=[task], task_manager=manager, limit=5, num_fewshot=3)
        hashes = [sample["prompt_hash"] for rows in theirs["samples"].values() for sample in rows]
        assert [item.prompt_hash for item in loaded.score(loaded.items, respond(HashModel(), loaded.requests(
            loaded.items)))] == hashes  # fmt: skip
        assert ours["metrics"][key]["score"] == pytest.approx(theirs["results"][task][key])
        assert len(set(hashes)) == len(hashes)


def test_a_summary_has_every_metric_with_its_interval(load: Any) -> None:
    loaded = load("tiny_choice", metric="acc_norm,none")
    summary = loaded.summary(items_in_shards(loaded, 4))
    assert summary["metric"] == "acc_norm,none"
    for score in summary["metrics"].values():
        assert score["n"] == 2 * ROWS and score["interval"][0] < score["score"] < score["interval"][1]
    assert summary["tasks"]["tiny_choice_last"]["sample_len"] == ROWS


def test_limits_are_by_task_and_a_metric_that_is_not_there_falls_back(load: Any) -> None:
    loaded = load("tiny_choice", limit=2, metric="f1,none")
    assert [doc for _, doc in loaded.items] == [0, 1, 0, 1]
    assert loaded.summary(items_in_shards(loaded, 3))["metric"] == "acc,none"


def test_an_items_text_is_all_that_its_document_says(load: Any) -> None:
    texts = load("tiny_choice").texts
    assert len(texts) == 2 * ROWS and texts["tiny_choice_first/0"].split() == ["train", "function", "numbers"]

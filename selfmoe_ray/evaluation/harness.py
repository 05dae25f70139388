"""A benchmark's items as lm-eval makes and scores them, in pieces that any number of workers can answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from selfmoe_ray.engine import patches
from selfmoe_ray.evaluation import statistics
from selfmoe_ray.evaluation.benchmarks import Benchmark
from selfmoe_ray.evaluation.tasks import TaskSource, load_task

# The name of an lm-eval task and the index of a document of its test split.
ItemId = tuple[str, int]


@dataclass(frozen=True)
class Item:
    """One system's answer to one document.

    metrics: by "metric,filter", what lm-eval's scoring of this document gives; mostly a number, for some
    metrics what their aggregation over documents needs. responses: a text or [log-likelihood, is_greedy]
    for each request. prompt_hash: lm-eval's, of the first request.
    """

    task: str
    doc_id: int
    prompt_hash: str
    metrics: Mapping[str, Any]
    responses: Sequence[Any]

    @property
    def id(self) -> str:
        """The document's name among all benchmarks."""
        return item_id(self.task, self.doc_id)


def item_id(task: str, doc_id: int) -> str:
    """The name of a document among all benchmarks."""
    return f"{task}/{doc_id}"


class LoadedBenchmark:
    """The tasks of a benchmark with the prompts of all its items.

    Prompts are made once, in the documents' order: few-shot examples are drawn one after the other, so a
    prompt made alone would not be the one that lm-eval makes.
    """

    def __init__(self, benchmark: Benchmark, tasks: Mapping[str, Any], groups: Mapping[str, Any], fewshot_seed: int):
        self.benchmark = benchmark
        self.fewshot_seed = fewshot_seed
        self._tasks = tasks
        self._groups = groups
        self._instances: dict[ItemId, list[Any]] = {}
        for name, task in tasks.items():
            _set_num_fewshot(task, benchmark.num_fewshot)
            task.build_all_requests(limit=benchmark.limit)
            for instance in task.instances:
                self._instances.setdefault((name, instance.doc_id), []).append(instance)

    @property
    def items(self) -> list[ItemId]:
        """Every item, in order."""
        return list(self._instances)

    @property
    def num_fewshot(self) -> dict[str, int]:
        """The examples in a prompt of each task."""
        return {name: task.config.num_fewshot for name, task in self._tasks.items()}

    @property
    def versions(self) -> dict[str, Any]:
        """The version that lm-eval gives each task."""
        return {name: task.VERSION for name, task in self._tasks.items()}

    @property
    def prompt_hashes(self) -> dict[ItemId, str]:
        """lm-eval's hash of each item's first prompt, examples included."""
        from lm_eval.utils import hash_string

        return {item: hash_string(instances[0].args[0]) for item, instances in self._instances.items()}

    @property
    def texts(self) -> dict[str, str]:
        """All that a document says, its answer included, by the item's id."""
        return {item_id(*item): "\n".join(_strings(instances[0].doc)) for item, instances in self._instances.items()}

    def requests(self, items: Sequence[ItemId]) -> list[Any]:
        """lm-eval's requests for these items, without their documents, which no model needs."""
        return [
            replace(instance, doc={}, resps=[], filtered_resps={})
            for item in items
            for instance in self._instances[item]
            for _ in range(instance.repeats or 1)
        ]

    def first_requests(self, items: Sequence[ItemId]) -> list[Any]:
        """The first request of each of these items."""
        return [self.requests([item])[0] for item in items]

    def score(self, items: Sequence[ItemId], responses: Sequence[Any]) -> list[Item]:
        """Score what a model answered to `requests(items)`, by lm-eval's filters and metrics."""
        answers = iter(responses)
        answered = {item: [_answer(instance, answers) for instance in self._instances[item]] for item in items}
        for name, task in self._tasks.items():
            instances = [each for item, of_item in answered.items() if item[0] == name for each in of_item]
            if instances:
                patches.checked(patches.ITEMS_SCORED)
                task._instances = instances
                task.apply_filters()
        return [self._score_item(item, instances) for item, instances in answered.items()]

    def _score_item(self, item: ItemId, instances: Sequence[Any]) -> Item:
        from lm_eval.utils import hash_string

        name, doc_id = item
        first = instances[0]
        metrics = {}
        for filter_name in first.filtered_resps:
            filtered = [instance.filtered_resps[filter_name] for instance in instances]
            for metric, value in self._tasks[name].process_results(first.doc, filtered).items():
                metrics[f"{metric},{filter_name}"] = _plain(value)
        responses = [_plain(response) for instance in instances for response in instance.resps]
        return Item(name, doc_id, hash_string(first.args[0]), metrics, responses)

    def summary(self, items: Sequence[Item]) -> dict[str, Any]:
        """The scores of all items, in whichever order they come: lm-eval's aggregations over their union.

        metric: the one of the tables. metrics: by "metric,filter", score, n, standard_error and interval
        (95%); the last two are None where the score is no mean of the items' values. tasks: each task's n
        and scores, where there are several.
        """
        place = {item: index for index, item in enumerate(self._instances)}
        items = sorted(items, key=lambda item: place[item.task, item.doc_id])
        tasks = {name: self._task_scores(name, items) for name in self._tasks}
        metrics = {key: self._estimate(key, items, tasks) for key in dict.fromkeys(_keys(items))}
        metric = self.benchmark.metric if self.benchmark.metric in metrics else next(iter(metrics))
        return {"metric": metric, "metrics": metrics, "tasks": tasks if len(tasks) > 1 else {}}

    def _task_scores(self, name: str, items: Sequence[Item]) -> dict[str, Any]:
        from lm_eval.api.metrics import mean

        task = self._tasks[name]
        own = [item for item in items if item.task == name]
        scores: dict[str, Any] = {"sample_len": len(own)}
        for key in dict.fromkeys(_keys(own)):
            aggregate = task.aggregation().get(key.rpartition(",")[0], mean)
            scores[key] = _plain(aggregate([item.metrics[key] for item in own if key in item.metrics]))
        return scores

    def _estimate(self, key: str, items: Sequence[Item], tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        values = [item.metrics[key] for item in items if key in item.metrics]
        group = self._groups.get(self.benchmark.task)
        aggregated = group.aggregate(dict(tasks)).get(key) if group else None
        if aggregated is None and len(tasks) == 1:
            aggregated = next(iter(tasks.values()))[key]
        if all(isinstance(value, int | float) for value in values):
            pooled = statistics.score(values)
            if aggregated is None or math.isclose(aggregated, pooled.mean, abs_tol=1e-9):
                fields = asdict(pooled)
                return {"score": fields.pop("mean"), **fields}
        return {"score": aggregated, "n": len(values), "standard_error": None, "interval": None}


def load_benchmark(benchmark: Benchmark, source: TaskSource, manager: Any) -> LoadedBenchmark:
    """Load a benchmark's tasks and make its prompts. Raises UserError where it cannot be loaded."""
    return LoadedBenchmark(benchmark, *load_task(benchmark.task, source, manager), source.fewshot_seed)


def respond(lm: Any, requests: Sequence[Any]) -> list[Any]:
    """An lm-eval model's answers to requests of any types, in their order."""
    answers: list[Any] = [None] * len(requests)
    for kind in dict.fromkeys(request.request_type for request in requests):
        places = [index for index, request in enumerate(requests) if request.request_type == kind]
        found = getattr(lm, kind)([requests[index] for index in places], disable_tqdm=True)
        for index, answer in zip(places, found, strict=True):
            answers[index] = answer
    return answers


def _set_num_fewshot(task: Any, num_fewshot: int | None) -> None:
    """As lm-eval's own command does: a task that asks for none is left without."""
    own = task.config.num_fewshot
    if own is None or (own != 0 and num_fewshot is not None):
        task.set_config("num_fewshot", num_fewshot or 0)


def _answer(instance: Any, answers: Iterator[Any]) -> Any:
    return replace(instance, resps=[next(answers) for _ in range(instance.repeats or 1)], filtered_resps={})


def _keys(items: Sequence[Item]) -> Iterator[str]:
    return (key for item in items for key in item.metrics)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, Sequence):
        for each in value:
            yield from _strings(each)


def _plain(value: Any) -> Any:
    """A value as JSON gives it back: numpy's numbers and arrays and tuples become plain ones."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value

"""What an evaluation does before an engine starts: benchmarks with their few-shot draws, and leaked items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.benchmarks import Benchmark, draw_name
from selfmoe_ray.evaluation.contamination import find_overlaps
from selfmoe_ray.evaluation.harness import LoadedBenchmark, load_benchmark
from selfmoe_ray.evaluation.tasks import TaskSource, check_names, task_manager
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import RunDir

LEAKED = "eval/leaked.json"


def load_benchmarks(chosen: Sequence[Benchmark], source: TaskSource, draws: int, emit: Emit) -> list[LoadedBenchmark]:
    """Every benchmark with its prompts; further draws of few-shot examples are benchmarks of their own.

    A draw has the next seed; one that gives the first draw's prompts, as with no examples or fixed ones, is
    left out. Raises UserError for an unknown task and for one that cannot be loaded.
    """
    if draws < 1:
        raise UserError(f"--draws: {draws} given; it must be at least 1")
    emit("eval", message="loading tasks", benchmarks=len(chosen))
    manager = task_manager(source)
    check_names(chosen, manager)
    loaded = []
    for benchmark in chosen:
        first = load_benchmark(benchmark, source, manager)
        loaded.append(first)
        for draw in range(1, draws):
            other = load_benchmark(
                replace(benchmark, name=draw_name(benchmark.name, draw)),
                replace(source, fewshot_seed=source.fewshot_seed + draw),
                manager,
            )
            if other.prompt_hashes == first.prompt_hashes:
                emit("eval", message="draws make no difference", benchmark=benchmark.name)
                break
            loaded.append(other)
    return loaded


def find_leaked(benchmarks: Sequence[LoadedBenchmark], run_dir: RunDir, emit: Emit) -> None:
    """List the items that stand in the generated examples, by benchmark, and say how many there are."""
    storage = run_dir.storage
    domains = [folder.rpartition("/")[2] for folder in storage.list_folders("data")]
    examples = [example for domain in domains for example in run_dir.read_examples(domain)]
    rows = {example.id: f"{example.instruction}\n{example.input}\n{example.output}" for example in examples}
    leaked = storage.read_json(LEAKED) if storage.exists(LEAKED) else {}
    for each in benchmarks:
        leaked[each.benchmark.name] = [asdict(overlap) for overlap in find_overlaps(each.texts, rows)]
    storage.write_json(LEAKED, leaked)
    counts = {each.benchmark.name: len(leaked[each.benchmark.name]) for each in benchmarks}
    emit("eval", message="items that share 13 words with a generated example", **counts)


def read_leaked(run_dir: RunDir) -> dict[str, set[str]]:
    """The ids of leaked items by benchmark."""
    found = run_dir.storage.read_json(LEAKED) if run_dir.storage.exists(LEAKED) else {}
    return {benchmark: {overlap["item"] for overlap in overlaps} for benchmark, overlaps in found.items()}

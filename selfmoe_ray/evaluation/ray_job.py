"""The evaluation of a run from its folder to its table: what `jobs/eval.py` does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from selfmoe_ray.base_model import resolve
from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.benchmarks import select_benchmarks
from selfmoe_ray.evaluation.contamination import find_overlaps
from selfmoe_ray.evaluation.evaluate import Cell, Evaluation, EvaluationSettings
from selfmoe_ray.evaluation.harness import LoadedBenchmark, load_benchmark
from selfmoe_ray.evaluation.main_table import TABLE, main_table, read_cells, to_csv, to_text
from selfmoe_ray.evaluation.systems import requested_gates, select_systems
from selfmoe_ray.evaluation.tasks import TaskSource, check_names, task_manager
from selfmoe_ray.events import Emit, EventLog
from selfmoe_ray.mixture.checkpoint import read_spec
from selfmoe_ray.mixture.merging import METHODS, MergeConfig, merge_mixture
from selfmoe_ray.ray_session import check_root, ray_session
from selfmoe_ray.run_dir import RunDir

LEAKED = "eval/leaked.json"


@dataclass(frozen=True)
class Options:
    """What the command line asks for; dtype: None for the run's own."""

    run: str
    systems: Sequence[str]
    tasks: Sequence[str]
    source: TaskSource
    merge: MergeConfig
    limit: int | None = None
    num_fewshot: int | None = None
    shard_size: int = 256
    dtype: str | None = None
    max_model_len: int = 4096
    redo: Sequence[str] = ()
    verbose: bool = False


def evaluate_run(options: Options) -> str:
    """Evaluate what is not evaluated yet, write and print the main table; returns the run's folder.

    Raises UserError for everything that the user can mend, before an engine starts.
    """
    run_dir, config = open_run(options.run)
    run_dir.manifest_hash(run_dir.MIXSE)
    with run_dir.storage.local_folder_to_read(run_dir.MIXSE) as folder:
        spec = read_spec(folder)
    systems = select_systems(options.systems, spec)
    with run_dir.storage.open_append(run_dir.EVENTS) as append:
        emit = EventLog(append)
        benchmarks = _load(options, emit)
        _find_leaked(benchmarks, run_dir, emit)
        _delete(options.redo, systems, benchmarks, run_dir)
        plans = _plan(options, config, run_dir, systems, benchmarks, emit)
        unfinished = {mixture: plan for mixture, plan in plans.items() if plan.unfinished}
        if unfinished:
            with ray_session(options.verbose):
                for mixture, plan in unfinished.items():
                    _evaluate(mixture, plan, options, config, run_dir, emit)
    rows = main_table(read_cells(run_dir, [*requested_gates(spec), *METHODS]), config.seed)
    run_dir.storage.write_bytes(f"{run_dir.REPORT}/{TABLE}", to_csv(rows).encode())
    print(f"\n{to_text(rows)}\n\nScores in percent. {run_dir.storage.path(run_dir.REPORT)}/{TABLE}")
    return run_dir.storage.path()


def open_run(run: str) -> tuple[RunDir, RunConfig]:
    """A run's folder and the config that it was last taken up with. Raises UserError where there is none."""
    import yaml

    root, _, name = run.rstrip("/").rpartition("/")
    check_root(root or ".")
    run_dir = RunDir(root or ".", name)
    try:
        values = yaml.safe_load(run_dir.storage.read_bytes(run_dir.CONFIG))
    except FileNotFoundError:
        raise UserError(f"--run: {run_dir.storage.path()} is no run: it has no {run_dir.CONFIG}") from None
    return run_dir, parse_config(values, run_dir.storage.path(run_dir.CONFIG))


def _load(options: Options, emit: Emit) -> list[LoadedBenchmark]:
    chosen = select_benchmarks(options.tasks, options.limit, options.num_fewshot)
    emit("eval", message="loading tasks", benchmarks=len(chosen))
    manager = task_manager(options.source)
    check_names(chosen, manager)
    return [load_benchmark(benchmark, options.source, manager) for benchmark in chosen]


def _find_leaked(benchmarks: Sequence[LoadedBenchmark], run_dir: RunDir, emit: Emit) -> None:
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


def _delete(
    redo: Sequence[str], systems: Mapping[str, str], benchmarks: Sequence[LoadedBenchmark], run_dir: RunDir
) -> None:
    names = [each.benchmark.name for each in benchmarks]
    cells = {f"{system}/{name}": (system, name) for name in names for system in systems}
    for name in redo:
        if name == run_dir.MERGED:
            for folder in (run_dir.MERGED, *(f"eval/{method}" for method in METHODS)):
                run_dir.storage.delete(folder)
        elif name in cells:
            run_dir.storage.delete(run_dir.evaluation(*cells[name]))
        else:
            raise UserError(
                f"--redo: {name!r} is not asked for; it must be {run_dir.MERGED} or one of {', '.join(cells)}"
            )


def _plan(
    options: Options,
    config: RunConfig,
    run_dir: RunDir,
    systems: Mapping[str, str],
    benchmarks: Sequence[LoadedBenchmark],
    emit: Emit,
) -> dict[str, Evaluation]:
    """An evaluation for each mixture, by its folder; benchmark by benchmark, so that comparisons are there early."""
    plans = {}
    for mixture in (run_dir.MIXSE, run_dir.MERGED):
        gates = {name: gate for name, gate in systems.items() if (name in METHODS) == (mixture == run_dir.MERGED)}
        if not gates:
            continue
        if mixture == run_dir.MERGED:
            _merge(options.merge, config, run_dir, emit)
        settings = EvaluationSettings(
            mixture=run_dir.manifest_hash(mixture),
            dtype=options.dtype or config.generation.dtype,
            max_model_len=_max_model_len(options, run_dir),
            fewshot_seed=options.source.fewshot_seed,
        )
        cells = [Cell(system, gate, benchmark) for benchmark in benchmarks for system, gate in gates.items()]
        plans[mixture] = plan = Evaluation(cells, settings, run_dir, emit)
        missing = sum(len(cell.missing) for cell in plan.unfinished)
        emit("eval", message=f"{mixture}: {len(plan.unfinished)} of {len(cells)} to do", items=missing)
    return plans


def _merge(merge: MergeConfig, config: RunConfig, run_dir: RunDir, emit: Emit) -> None:
    """Make the mixture of merges where it is not made yet."""
    start = time.monotonic()
    settings = {"merge": merge.model_dump(mode="json")}
    inputs = {run_dir.MIXSE: run_dir.manifest_hash(run_dir.MIXSE)}
    if run_dir.is_done(run_dir.MERGED, settings, inputs, redo=run_dir.MERGED):
        return
    emit("eval", message="merging the experts", density=merge.density)
    base = resolve(config.base_model, config.trust_remote_code)
    storage = run_dir.storage
    with (
        storage.local_folder_to_read(run_dir.MIXSE) as mixse,
        storage.local_folder_to_write(run_dir.MERGED) as folder,
    ):
        merge_mixture(mixse, folder, merge, base)
    run_dir.write_manifest(run_dir.MERGED, settings, inputs, {"adapters": len(METHODS)}, time.monotonic() - start)


def _max_model_len(options: Options, run_dir: RunDir) -> int:
    longest: Any = run_dir.storage.read_json(f"{run_dir.MIXSE}/config.json").get("max_position_embeddings")
    return min(options.max_model_len, longest or options.max_model_len)


def _evaluate(mixture: str, plan: Evaluation, options: Options, config: RunConfig, run_dir: RunDir, emit: Emit) -> None:
    from selfmoe_ray.evaluation.ray_evaluate import start_engines

    settings = plan.settings
    emit("eval", message=f"starting engines of {mixture}")
    with start_engines(config, run_dir.storage.path(), mixture, settings.dtype, settings.max_model_len) as engines:
        plan.run(engines.answer, options.shard_size)

"""The evaluation of a run from its folder to its table: what `jobs/eval.py` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.benchmarks import select_benchmarks
from selfmoe_ray.evaluation.evaluate import Cell, Evaluation, EvaluationSettings
from selfmoe_ray.evaluation.harness import LoadedBenchmark, load_benchmark
from selfmoe_ray.evaluation.main_table import TABLE, main_table, read_cells, to_csv, to_text
from selfmoe_ray.evaluation.systems import requested_gates, select_systems
from selfmoe_ray.evaluation.tasks import TaskSource, check_names, task_manager
from selfmoe_ray.events import Emit, EventLog
from selfmoe_ray.mixture.checkpoint import read_spec
from selfmoe_ray.ray_session import check_root, ray_session
from selfmoe_ray.run_dir import RunDir


@dataclass(frozen=True)
class Options:
    """What the command line asks for; dtype: None for the run's own."""

    run: str
    systems: Sequence[str]
    tasks: Sequence[str]
    source: TaskSource
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
        evaluation = _plan(options, config, run_dir, systems, benchmarks, emit)
        if evaluation.unfinished:
            with ray_session(options.verbose):
                _evaluate(evaluation, options, config, run_dir, emit)
    rows = main_table(read_cells(run_dir, list(requested_gates(spec))), config.seed)
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


def _plan(
    options: Options,
    config: RunConfig,
    run_dir: RunDir,
    systems: Mapping[str, str],
    benchmarks: Sequence[LoadedBenchmark],
    emit: Emit,
) -> Evaluation:
    """Benchmark by benchmark, so that comparisons between systems are there early."""
    cells = [Cell(system, gate, benchmark) for benchmark in benchmarks for system, gate in systems.items()]
    by_name = {cell.name: cell for cell in cells}
    for name in options.redo:
        if name not in by_name:
            raise UserError(f"--redo: {name!r} is not asked for; it must be one of {', '.join(by_name)}")
        run_dir.storage.delete(run_dir.evaluation(*name.split("/")))
    settings = EvaluationSettings(
        mixture=run_dir.manifest_hash(run_dir.MIXSE),
        dtype=options.dtype or config.generation.dtype,
        max_model_len=_max_model_len(options, run_dir),
        fewshot_seed=options.source.fewshot_seed,
    )
    evaluation = Evaluation(cells, settings, run_dir, emit)
    missing = sum(len(cell.missing) for cell in evaluation.unfinished)
    emit("eval", message=f"{len(evaluation.unfinished)} of {len(cells)} to do", items=missing)
    return evaluation


def _max_model_len(options: Options, run_dir: RunDir) -> int:
    longest: Any = run_dir.storage.read_json(f"{run_dir.MIXSE}/config.json").get("max_position_embeddings")
    return min(options.max_model_len, longest or options.max_model_len)


def _evaluate(evaluation: Evaluation, options: Options, config: RunConfig, run_dir: RunDir, emit: Emit) -> None:
    from selfmoe_ray.evaluation.ray_evaluate import start_engines

    settings = evaluation.settings
    emit("eval", message="starting engines")
    with start_engines(
        config, run_dir.storage.path(), run_dir.MIXSE, settings.dtype, settings.max_model_len
    ) as engines:
        evaluation.run(engines.answer, options.shard_size)

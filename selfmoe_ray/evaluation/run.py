"""The evaluation of a run from its folder to its tables: what `jobs/eval.py` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.base_model.outline import Outline
from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.engine.preflight import check_base, check_dtype, fast_dtype_of_engines
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.benchmark_routing import benchmarks_to_trace, keep_routing, spread
from selfmoe_ray.evaluation.benchmarks import select_benchmarks
from selfmoe_ray.evaluation.cells import Cell, Evaluation, EvaluationSettings
from selfmoe_ray.evaluation.harness import LoadedBenchmark
from selfmoe_ray.evaluation.preparation import find_leaked, load_benchmarks
from selfmoe_ray.evaluation.systems import System, select_systems
from selfmoe_ray.evaluation.tasks import TaskSource
from selfmoe_ray.machines.ray_session import check_root, ray_session
from selfmoe_ray.mixture.checkpoint import read_spec, resolve_base
from selfmoe_ray.mixture.gate import check_names
from selfmoe_ray.mixture.merging import MergeConfig, merge_mixture
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.mixture.systems import MERGES, MIXSE
from selfmoe_ray.run.events import Emit, EventLog
from selfmoe_ray.run.lease import held
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Made, Making, Product, Stage, missing, run_stage


@dataclass(frozen=True)
class Options:
    """What the command line asks for; it has the defaults, but for the last two, which studies do not ask for.

    dtype: None for the run's own. traced_items: of each benchmark.
    """

    run: str
    systems: Sequence[str]
    tasks: Sequence[str]
    source: TaskSource
    merge: MergeConfig
    limit: int | None
    num_fewshot: int | None
    shard_size: int
    dtype: str | None
    max_model_len: int
    traced_items: int
    verbose: bool
    draws: int = 1
    redo: Sequence[str] = ()


@dataclass(frozen=True)
class Work:
    """What is to be done with one mixture: the cells to answer, and the benchmarks to trace its routing on."""

    evaluation: Evaluation
    traced: Sequence[LoadedBenchmark]

    def __bool__(self) -> bool:
        return bool(self.evaluation.unfinished or self.traced)


def evaluate_run(options: Options) -> str:
    """Evaluate what is not evaluated yet; returns the run's folder.

    Raises UserError for everything that the user can mend, before an engine starts, and where another job is at
    work on the run.
    """
    run_dir, config = open_run(options.run)
    spec = read_mixture(run_dir)
    systems = select_systems(options.systems, spec, config)
    outline = preflight(spec, config, options.dtype)
    with held(run_dir.storage), run_dir.storage.open_append(run_dir.EVENTS) as append:
        emit = EventLog(append)
        chosen = select_benchmarks(options.tasks, options.limit, options.num_fewshot)
        benchmarks = load_benchmarks(chosen, options.source, options.draws, emit)
        find_leaked(benchmarks, run_dir, emit)
        _delete(options.redo, systems, benchmarks, run_dir)
        _train(systems, spec.experts, config, outline.base, run_dir, options.verbose, emit)
        works = _plan(options, config, outline, run_dir, systems, benchmarks, emit)
        if any(works.values()):
            with ray_session(options.verbose):
                for mixture, work in works.items():
                    if work:
                        _evaluate(mixture, work, options, config, run_dir, emit)
    return run_dir.storage.path()


def read_mixture(run_dir: RunDir) -> MixtureSpec:
    """The spec of a run's finished mixture. Raises UserError where it is not finished."""
    run_dir.manifest_hash(run_dir.MIXSE)
    with run_dir.storage.local_folder_to_read(run_dir.MIXSE) as folder:
        return read_spec(folder)


def preflight(spec: MixtureSpec, config: RunConfig, dtype: str | None) -> Outline:
    """The base of a run's mixture without its weights. Raises UserError where the mixture cannot be run on it.

    dtype: None for the run's own.
    """
    check_names(spec.experts)
    asked, setting = (dtype, "--dtype") if dtype else (config.generation.dtype, "the run's generation.dtype")
    if asked == "bfloat16" and config.resources.generation.gpus_per_engine != 0:
        check_dtype(asked, setting, fast_dtype_of_engines())
    return check_base(resolve_base(spec, config.base_model, config.trust_remote_code))


def open_run(run: str) -> tuple[RunDir, RunConfig]:
    """A run's folder and the config that it was last taken up with. Raises UserError where there is none."""
    root, _, name = run.rstrip("/").rpartition("/")
    check_root(root or ".")
    run_dir = RunDir(root or ".", name)
    values = run_dir.read_config()
    if values is None:
        raise UserError(f"--run: {run_dir.storage.path()} is no run: it has no {run_dir.CONFIG}")
    return run_dir, parse_config(values, run_dir.storage.path(run_dir.CONFIG))


def _delete(
    redo: Sequence[str], systems: Mapping[str, System], benchmarks: Sequence[LoadedBenchmark], run_dir: RunDir
) -> None:
    names = [each.benchmark.name for each in benchmarks]
    folders = {f"{system}/{name}": [run_dir.evaluation(system, name)] for name in names for system in systems}
    folders[run_dir.MERGED] = [run_dir.MERGED, *(f"eval/{method}" for method in MERGES)]
    trained = [name for name, system in systems.items() if system.variant]
    folders |= {run_dir.variant(name): [run_dir.variant(name), f"eval/{name}"] for name in trained}
    for name in redo:
        if name not in folders:
            raise UserError(f"--redo: {name!r} is not asked for; it must be one of {', '.join(folders)}")
        for folder in folders[name]:
            run_dir.storage.delete(folder)


def _train(
    systems: Mapping[str, System],
    domains: Sequence[str],
    config: RunConfig,
    base: BaseModel,
    run_dir: RunDir,
    verbose: bool,
    emit: Emit,
) -> None:
    """Train the variants that are asked for and not trained yet."""
    variants = [system.variant for system in systems.values() if system.variant]
    if not variants:
        return
    from selfmoe_ray.evaluation.ray_variants import variant_stages

    folders = [variant.folder(run_dir) for variant in variants]
    todo = [
        (stage, folder)
        for variant, folder in zip(variants, folders, strict=True)
        for stage in missing(variant_stages(variant, domains, base, folder, emit), folder)
    ]
    if todo:
        with ray_session(verbose):
            for stage, folder in todo:
                run_stage(stage, folder)


def _plan(
    options: Options,
    config: RunConfig,
    outline: Outline,
    run_dir: RunDir,
    systems: Mapping[str, System],
    benchmarks: Sequence[LoadedBenchmark],
    emit: Emit,
) -> dict[str, Work]:
    """The work of each mixture, by its folder; benchmark by benchmark, so that comparisons are there early."""
    works = {}
    for mixture in dict.fromkeys(system.mixture for system in systems.values()):
        if mixture == run_dir.MERGED:
            _merge(options.merge, outline.base, run_dir, emit)
        settings = EvaluationSettings(
            mixture=run_dir.manifest_hash(mixture),
            dtype=options.dtype or config.generation.dtype,
            max_model_len=min(options.max_model_len, outline.context_length or options.max_model_len),
        )
        gates = {name: system.gate for name, system in systems.items() if system.mixture == mixture}
        cells = [Cell(system, gate, benchmark) for benchmark in benchmarks for system, gate in gates.items()]
        plan = Evaluation(cells, settings, run_dir, emit)
        traced = benchmarks_to_trace(benchmarks, options.traced_items, run_dir) if MIXSE in gates else []
        works[mixture] = Work(plan, traced)
        missing = sum(len(cell.missing) for cell in plan.unfinished)
        emit("eval", message=f"{mixture}: {len(plan.unfinished)} of {len(cells)} to do", items=missing)
    return works


def _merge(merge: MergeConfig, base: BaseModel, run_dir: RunDir, emit: Emit) -> None:
    """Make the mixture of merges where it is not made yet."""
    merged = Product(run_dir.MERGED, {"merge": merge.model_dump(mode="json")}, (run_dir.MIXSE,), run_dir.MERGED)

    def make(_: object) -> Making:
        emit("eval", message="merging the experts", density=merge.density)
        storage = run_dir.storage
        with (
            storage.local_folder_to_read(run_dir.MIXSE) as mixse,
            storage.local_folder_to_write(run_dir.MERGED) as folder,
        ):
            merge_mixture(mixse, folder, merge, base)
        yield Made(run_dir.MERGED, {"adapters": len(MERGES)})

    run_stage(Stage(run_dir.MERGED, [merged], make), run_dir)


def _evaluate(mixture: str, work: Work, options: Options, config: RunConfig, run_dir: RunDir, emit: Emit) -> None:
    from selfmoe_ray.evaluation.ray_engines import start_engines

    settings = work.evaluation.settings
    emit("eval", message=f"starting engines of {mixture}")
    run = run_dir.storage.path()
    with start_engines(config, run, mixture, settings.dtype, settings.max_model_len, emit) as engines:
        work.evaluation.run(engines.answer, options.shard_size)
        for benchmark in work.traced:
            routing = engines.trace(benchmark.first_requests(spread(benchmark.items, options.traced_items)))
            keep_routing(benchmark, options.traced_items, routing, run_dir)
            emit("eval", message="routing traced", benchmark=benchmark.benchmark.name, tokens=routing["tokens"])

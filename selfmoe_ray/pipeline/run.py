"""From seeds to a report: the stages of a run, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from selfmoe_ray.base_model import BaseModel, resolve
from selfmoe_ray.base_model.outline import Outline
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain, load_domains
from selfmoe_ray.errors import UserError
from selfmoe_ray.generation.filters import check_response, check_task
from selfmoe_ray.generation.stage import domain_product
from selfmoe_ray.machines.packages import provenance
from selfmoe_ray.machines.ray_session import check_root, ray_session
from selfmoe_ray.measure.stage import measure_product
from selfmoe_ray.pipeline.dtypes import settle_dtypes
from selfmoe_ray.pipeline.preflight import preflight, read_base
from selfmoe_ray.pipeline.ray_prepare import plan_on_paper, prepare_cluster
from selfmoe_ray.reporting.closing import closing
from selfmoe_ray.run.events import Emit, EventLog, to_all
from selfmoe_ray.run.lease import held
from selfmoe_ray.run.ray_metrics import RayMetrics
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import STAGES, Made, Making, Product, Stage, delete_from, missing, run_stages
from selfmoe_ray.run.trackers import tracked
from selfmoe_ray.training.stage import assemble, expert_products, mixse_product, router_product


@dataclass(frozen=True)
class Context:
    """What every stage works with."""

    config: RunConfig
    domains: list[Domain]
    base: BaseModel
    outline: Outline
    run_dir: RunDir
    emit: Emit

    @property
    def names(self) -> list[str]:
        """The domains' names, which are the experts' names, in order."""
        return [domain.name for domain in self.domains]


def prepare(config: RunConfig, run_dir: RunDir, emit: Emit) -> Context:
    """Check all that the user gave, before any work. Raises UserError for the first that is wrong."""
    from selfmoe_ray.mixture.gate import check_names

    domains = load_domains(config.domains)
    check_names([domain.name for domain in domains])
    for domain in domains:
        _check_seeds(domain, config, emit)
    if config.mixture.num_experts_per_tok > len(domains):
        raise UserError(
            f"mixture.num_experts_per_tok: {config.mixture.num_experts_per_tok} asked, but "
            f"{len(domains)} domain(s) make {len(domains)} expert(s)"
        )
    base = resolve(config.base_model, config.trust_remote_code)
    config, outline = read_base(config, base, emit)
    return Context(config, domains, base, outline, run_dir, emit)


def _check_seeds(domain: Domain, config: RunConfig, emit: Emit) -> None:
    generation = config.generation
    shown = min(generation.seeds_per_domain, len(domain.seeds))
    needed = max(generation.brainstorm.seeds_in_context, generation.respond.seeds_in_context)
    if shown < needed:
        raise UserError(
            f"domain {domain.name!r}: {shown} seeds to show, but a prompt shows {needed} "
            "(generation.brainstorm.seeds_in_context, generation.respond.seeds_in_context); "
            "add rows to its seeds.jsonl, or raise generation.seeds_per_domain"
        )
    problems = _shape_problems(domain, config)
    if problems:
        emit(
            "seeds",
            message=f"warning: {len(problems)} of {len(domain.seeds)} seeds would not pass as generated rows; "
            f"the first: {problems[0]}",
            domain=domain.name,
        )


def _shape_problems(domain: Domain, config: RunConfig) -> list[str]:
    """A model copies the form of its seeds: those that break the domain's own shape lower the yield."""
    filters = config.generation.filters
    problems = []
    for number, seed in enumerate(domain.seeds, start=1):
        reason = check_task(seed.instruction, seed.input, domain.shape, filters) or check_response(
            seed.instruction, seed.input, seed.output, domain.shape, filters
        )
        if reason:
            problems.append(f"seed {number}: {reason}")
    return problems


def stages_of(context: Context) -> list[Stage]:
    """The stages of a run, in order."""
    config, names, base, run_dir = context.config, context.names, context.base, context.run_dir
    gives = {
        "generate": [domain_product(domain, config, base, run_dir) for domain in context.domains],
        "experts": expert_products(config, names, base, run_dir),
        "router": [router_product(config, names, base, run_dir)],
        "mixse": [mixse_product(config, names, base, run_dir)],
        "measure": [measure_product(config, names, run_dir)],
        "report": [Product(run_dir.REPORT, {}, (run_dir.MEASURE,), run_dir.redo("report"))],
    }
    leaves = {"experts": ("checkpoints",)}
    return [Stage(name, gives[name], partial(_make, context, name), leaves.get(name, ())) for name in STAGES]


def _make(context: Context, stage: str, todo: Sequence[Product]) -> Making:
    """What a stage does; what it needs is imported only then."""
    config, names, base, run_dir, emit = context.config, context.names, context.base, context.run_dir, context.emit
    if stage == "generate":
        from selfmoe_ray.generation.ray_stage import run_generation

        return run_generation(context.domains, todo, config, base, run_dir, emit)
    if stage == "experts":
        from selfmoe_ray.training.ray_stage import train_experts

        return train_experts(config, names, todo, base, run_dir, emit)
    if stage == "router":
        from selfmoe_ray.training.ray_stage import train_router

        return train_router(config, names, todo, base, run_dir, emit)
    if stage == "mixse":
        return assemble(config, names, base, run_dir)
    if stage == "measure":
        from selfmoe_ray.measure.ray_stage import measure

        return measure(config, names, base, run_dir, emit)
    return _report(config, run_dir)


def _report(config: RunConfig, run_dir: RunDir) -> Making:
    from selfmoe_ray.reporting.page import write_report

    write_report(config, run_dir)
    yield Made(run_dir.REPORT, {})


def run(config: RunConfig, redo: str | None = None, until: str | None = None, verbose: bool = False) -> str:
    """Run what a config asks for and is not done yet; returns the run's folder.

    redo: a stage whose results, and those after it, are deleted first. until: the stage to stop after.
    Raises UserError for everything that the user can mend.
    """
    check_root(config.root)
    run_dir = RunDir(config.root, config.run_name)
    with held(run_dir.storage), run_dir.storage.open_append(run_dir.EVENTS) as append:
        log = EventLog(append)
        config = settle_dtypes(config, run_dir, log)
        context = prepare(config, run_dir, log)
        config = context.config
        if redo:
            delete_from(stages_of(context), run_dir, redo)
        todo = [stage.name for stage in missing(stages_of(context), run_dir, until)]
        log("run", message=f"to do: {', '.join(todo) or 'nothing, all is done'}")
        if todo:
            preflight(config, context.domains, context.outline, log)
            settings = config.model_dump(mode="json")
            run_dir.write_start(settings, provenance())
            with tracked(config.trackers, settings, run_dir) as trackers, ray_session(verbose):
                emit = to_all([log, RayMetrics(config.run_name), *trackers])
                prepare_cluster(config, context.names, context.base, todo, emit)
                stages = stages_of(replace(context, emit=emit))
                run_stages([stage for stage in stages if stage.name in todo], run_dir, emit)
    if until in (None, STAGES[-1]):
        print(closing(run_dir))
    return run_dir.storage.path()


def describe(config: RunConfig, redo: str | None = None, until: str | None = None) -> str:
    """What `run` would do, one line a stage, and its plan of the cluster that RAY_ADDRESS names or else of this
    machine; checks what `run` checks before any work."""
    check_root(config.root)
    run_dir = RunDir(config.root, config.run_name)
    log = EventLog(lambda _: None)
    config = settle_dtypes(config, run_dir, log)
    context = prepare(config, run_dir, log)
    config = context.config
    preflight(config, context.domains, context.outline, log)
    redone = STAGES.index(redo) if redo else len(STAGES)
    kept = stages_of(context)[:redone]
    first = redone - len(missing(kept, run_dir))
    last = STAGES.index(until) + 1 if until else len(STAGES)
    todo = STAGES[first:last]
    lines = [f"run {run_dir.storage.path()}", f"base {context.base.value} (hash {context.base.content_hash})"]
    lines += [f"domain {domain.name}: {len(domain.seeds)} seeds" for domain in context.domains]
    lines += [f"stage {name}: {'to do' if name in todo else 'done'}" for name in STAGES[:last]]
    if todo:
        lines += plan_on_paper(config, context.names, context.base, todo).lines()
    return "\n".join(lines)

"""From seeds to a report: the stages of a run, in order."""

from __future__ import annotations

import time
from dataclasses import replace

from selfmoe_ray.base_model import resolve
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain, load_domains, split_seeds
from selfmoe_ray.errors import UserError
from selfmoe_ray.generation.filters import check_response, check_task
from selfmoe_ray.generation.stage import stage_settings
from selfmoe_ray.machines.packages import provenance
from selfmoe_ray.machines.ray_session import check_root, ray_session
from selfmoe_ray.measure.stage import expected_manifest
from selfmoe_ray.pipeline.ray_prepare import plan_on_paper, prepare_cluster
from selfmoe_ray.pipeline.stages import Context, Settings, Stage, delete_from, missing, run_stages
from selfmoe_ray.reporting.closing import closing
from selfmoe_ray.run.events import Emit, EventLog, to_all
from selfmoe_ray.run.lease import held
from selfmoe_ray.run.ray_metrics import RayMetrics
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.trackers import tracked
from selfmoe_ray.training.mixse import assemble, mixse_manifest
from selfmoe_ray.training.stage import expert_manifest, router_manifest


def prepare(config: RunConfig, run_dir: RunDir, emit: Emit) -> Context:
    """Check all that the user gave, before any work. Raises UserError for the first that is wrong."""
    domains = load_domains(config.domains)
    for domain in domains:
        _check_seeds(domain, config, emit)
    if config.mixture.num_experts_per_tok > len(domains):
        raise UserError(
            f"mixture.num_experts_per_tok: {config.mixture.num_experts_per_tok} asked, but "
            f"{len(domains)} domain(s) make {len(domains)} expert(s)"
        )
    base = resolve(config.base_model, config.trust_remote_code)
    return Context(config, domains, base, run_dir, emit)


def _check_seeds(domain: Domain, config: RunConfig, emit: Emit) -> None:
    generation = config.generation
    shown, _ = split_seeds(domain, generation.seeds_per_domain, config.seed)
    needed = max(generation.brainstorm.seeds_in_context, generation.respond.seeds_in_context)
    if len(shown) < needed:
        raise UserError(
            f"domain {domain.name!r}: {len(shown)} seeds to show, but a prompt shows {needed} "
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


def _generate(context: Context) -> None:
    from selfmoe_ray.generation.ray_stage import run_generation

    run_generation(context.domains, context.config, context.base, context.run_dir, context.emit)


def _train_experts(context: Context) -> None:
    from selfmoe_ray.training.ray_stage import train_experts

    train_experts(context.config, context.domains, context.base, context.run_dir, context.emit)


def _train_router(context: Context) -> None:
    from selfmoe_ray.training.ray_stage import train_router

    train_router(context.config, context.domains, context.base, context.run_dir, context.emit)


def _assemble(context: Context) -> None:
    assemble(context.config, context.names, context.base, context.run_dir)


def _measure(context: Context) -> None:
    from selfmoe_ray.measure.ray_stage import measure

    measure(context.config, context.domains, context.base, context.run_dir, context.emit)


def _report(context: Context) -> None:
    from selfmoe_ray.reporting.page import write_report

    start = time.monotonic()
    write_report(context.config, context.run_dir)
    settings, inputs = _report_manifest(context)
    context.run_dir.write_manifest(context.run_dir.REPORT, settings, inputs, {}, time.monotonic() - start)


def _report_manifest(context: Context) -> Settings:
    measure = context.run_dir.MEASURE
    return {}, {measure: context.run_dir.manifest_hash(measure)}


def _domain(context: Context, folder: str) -> Domain:
    """The domain that a folder of data or of an expert belongs to."""
    return next(domain for domain in context.domains if domain.name == folder.rsplit("/", 1)[1])


STAGES = (
    Stage(
        name="generate",
        folders=lambda context: [context.run_dir.data(name) for name in context.names],
        expected=lambda context, folder: (
            stage_settings(_domain(context, folder), context.config, context.base),
            {},
        ),
        run=_generate,
    ),
    Stage(
        name="experts",
        folders=lambda context: [context.run_dir.expert(name) for name in context.names],
        expected=lambda context, folder: expert_manifest(
            context.config, _domain(context, folder).name, context.base, context.run_dir
        ),
        run=_train_experts,
        leaves=("checkpoints",),
    ),
    Stage(
        name="router",
        folders=lambda context: [context.run_dir.ROUTER],
        expected=lambda context, _: router_manifest(context.config, context.names, context.base, context.run_dir),
        run=_train_router,
    ),
    Stage(
        name="mixse",
        folders=lambda context: [context.run_dir.MIXSE],
        expected=lambda context, _: mixse_manifest(context.config, context.names, context.base, context.run_dir),
        run=_assemble,
    ),
    Stage(
        name="measure",
        folders=lambda context: [context.run_dir.MEASURE],
        expected=lambda context, _: expected_manifest(context.config, context.names, context.run_dir),
        run=_measure,
    ),
    Stage(
        name="report",
        folders=lambda context: [context.run_dir.REPORT],
        expected=lambda context, _: _report_manifest(context),
        run=_report,
    ),
)


def run(config: RunConfig, redo: str | None = None, last: str | None = None, verbose: bool = False) -> str:
    """Run what a config asks for and is not done yet; returns the run's folder.

    redo: a stage whose results, and those after it, are deleted first. last: the stage to stop after.
    Raises UserError for everything that the user can mend.
    """
    check_root(config.root)
    run_dir = RunDir(config.root, config.run_name)
    with held(run_dir.storage), run_dir.storage.open_append(run_dir.EVENTS) as append:
        log = EventLog(append)
        context = prepare(config, run_dir, log)
        if redo:
            delete_from(STAGES, context, redo)
        todo = missing(STAGES, context, last)
        log("run", message=f"to do: {', '.join(stage.name for stage in todo) or 'nothing, all is done'}")
        if todo:
            settings = config.model_dump(mode="json")
            run_dir.write_start(settings, provenance())
            with tracked(config.trackers, settings, run_dir) as trackers, ray_session(verbose):
                emit = to_all([log, RayMetrics(config.run_name), *trackers])
                prepare_cluster(config, context.names, context.base, [stage.name for stage in todo], emit)
                run_stages(todo, replace(context, emit=emit))
    if last in (None, STAGES[-1].name):
        print(closing(run_dir))
    return run_dir.storage.path()


def describe(config: RunConfig, redo: str | None = None) -> str:
    """What `run` would do, one line a stage, and its plan of the cluster that RAY_ADDRESS names or else of this
    machine; checks what `run` checks before any work."""
    check_root(config.root)
    run_dir = RunDir(config.root, config.run_name)
    context = prepare(config, run_dir, EventLog(lambda _: None))
    names = [stage.name for stage in STAGES]
    redone = names.index(redo) if redo else len(names)
    first = len(missing(STAGES[:redone], context))
    todo = names[redone - first :] if first else names[redone:]
    lines = [f"run {run_dir.storage.path()}", f"base {context.base.value} (hash {context.base.content_hash})"]
    lines += [f"domain {domain.name}: {len(domain.seeds)} seeds" for domain in context.domains]
    lines += [f"stage {name}: {'to do' if name in todo else 'done'}" for name in names]
    if todo:
        lines += plan_on_paper(config, context.names, context.base, todo).lines()
    return "\n".join(lines)

"""The generation stage: waves of completions until every domain has its examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.domains.rows import split_seeds
from selfmoe_ray.errors import UserError
from selfmoe_ray.generation.domain_state import Complete, DomainState, Part
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.records import Completion
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Made, Making, Product

if TYPE_CHECKING:
    from selfmoe_ray.base_model import BaseModel

_TOP_REASONS = 6


def domain_product(domain: Domain, config: RunConfig, base: BaseModel, run_dir: RunDir) -> Product:
    """A domain's folder, and everything that its examples depend on."""
    content = json.dumps(asdict(domain), sort_keys=True).encode()
    settings = {
        "generation": config.generation.model_dump(),
        "seed": config.seed,
        "domain": hashlib.sha256(content).hexdigest()[:16],
        "base_model": {"value": base.value, "content_hash": base.content_hash},
    }
    # What raw completions depend on: raising a limit that was reached must not throw them away.
    of_parts = {**settings, "generation": config.generation.model_dump(exclude={"max_rounds", "accept_fewer"})}
    return Product(run_dir.data(domain.name), settings, (), run_dir.redo("generate"), begun=of_parts)


def generate(
    domains: Sequence[Domain],
    todo: Sequence[Product],
    config: RunConfig,
    run_dir: RunDir,
    complete: Complete,
    emit: Emit,
    devices: int = 1,
) -> Making:
    """Write the examples of those domains that are to do, taking up whatever an earlier run has finished.

    A wave is one call of `complete`, with all domains and both phases in it: the responses to what
    was brainstormed before, and the brainstorming that is still needed (paper, section 3.1). devices: how
    many serve `complete`.

    Raises UserError where a domain has fewer than `examples_per_domain` valid, distinct examples after
    `max_rounds` and `accept_fewer` is not set.
    """
    folders = {product.folder for product in todo}
    pending = {}
    for domain in domains:
        if run_dir.data(domain.name) not in folders:
            emit("generate", message="already done", domain=domain.name)
            continue
        shown, held_out = split_seeds(domain, config.generation.seeds_per_domain, config.seed)
        run_dir.write_seeds(domain.name, shown, held_out)
        pending[domain.name] = DomainState(domain, shown, config.generation, config.seed)
    waves = _run_waves(pending, run_dir, complete, emit)
    _refuse_too_few(pending, config)
    for name, state in pending.items():
        kept = state.examples[: config.generation.examples_per_domain]
        run_dir.write_examples(name, kept, state.rejects)
        counts = {"examples": len(kept), "waves": waves[name], **_phase_summaries(state)}
        yield Made(run_dir.data(name), counts, devices / len(pending))
        emit("generate", message="done", domain=name, examples=len(kept), **_yields(state))


def _run_waves(states: dict[str, DomainState], run_dir: RunDir, complete: Complete, emit: Emit) -> dict[str, int]:
    """Fold waves until no domain plans any more; returns the number of waves a domain took part in."""
    finished = {
        (name, phase, part): rows
        for name in states
        for phase in ("brainstorm", "respond")
        for part, rows in run_dir.read_parts(name, phase).items()
    }
    waves = dict.fromkeys(states, 0)
    wave = 0
    while planned := [part for state in states.values() for part in state.plan(wave)]:
        todo = [part for part in planned if not _is_finished(part, finished)]
        _emit_plan(emit, wave, planned, todo)
        if todo:
            for part, rows in complete(todo):
                run_dir.write_part(part.domain, part.phase, part.id, rows)
                finished[_key(part)] = rows
        for part in planned:
            states[part.domain].fold(finished.pop(_key(part)))
        for name in {part.domain for part in planned}:
            waves[name] += 1
            state = states[name]
            have = len(state.examples)
            emit("generate", message="wave done", wave=wave, domain=name, examples=have, **_yields(state))
        wave += 1
    return waves


def _key(part: Part) -> tuple[str, str, str]:
    return part.domain, part.phase, part.id


def _is_finished(part: Part, finished: dict[tuple[str, str, str], list[Completion]]) -> bool:
    rows = finished.get(_key(part))
    return rows is not None and [row.id for row in rows] == [prompt.id for prompt in part.prompts]


def _emit_plan(emit: Emit, wave: int, planned: list[Part], todo: list[Part]) -> None:
    def count(parts: Iterable[Part], phase: str) -> int:
        return sum(len(part.prompts) for part in parts if part.phase == phase)

    emit(
        "generate",
        message="wave planned",
        wave=wave,
        brainstorm=count(planned, "brainstorm"),
        respond=count(planned, "respond"),
        found_finished=sum(len(part.prompts) for part in planned) - sum(len(part.prompts) for part in todo),
    )


def _yields(state: DomainState) -> dict[str, str]:
    return {f"{phase}_valid": f"{counts.valid}/{counts.completions}" for phase, counts in state.counts.items()}


def _phase_summaries(state: DomainState) -> dict[str, Any]:
    return {phase: counts.summary() for phase, counts in state.counts.items()}


def _refuse_too_few(states: dict[str, DomainState], config: RunConfig) -> None:
    asked = config.generation.examples_per_domain
    short = [state for state in states.values() if len(state.examples) < asked]
    none_at_all = [state for state in short if not state.examples]
    if not short or (config.generation.accept_fewer and not none_at_all):
        return
    lines = [f"generation: not enough valid examples after max_rounds = {config.generation.max_rounds}"]
    for state in none_at_all if config.generation.accept_fewer else short:
        lines.append(f"  {state.domain.name}: {len(state.examples)} of {asked}")
        for phase, counts in state.counts.items():
            reasons = ", ".join(f"{reason} {count}" for reason, count in counts.rejected.most_common(_TOP_REASONS))
            lines.append(f"    {phase}: {counts.valid} of {counts.completions} valid; rejected: {reasons or 'none'}")
    lines += [
        "  Nothing is lost; run again after one of these:",
        "    generation.max_rounds       a higher limit goes on from here",
        "    generation.accept_fewer     true makes do with what there is",
        "    generation.filters or the domain's files: mend them and add --redo generate",
    ]
    raise UserError("\n".join(lines))

"""Generation on a Ray cluster: Ray Data streams prompts through pools of vLLM engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import ray

from selfmoe_ray.base_model import BaseModel, check_tensors, check_values
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.engine.plan import EnginePlan, Pool, concurrent_requests, engine_kwargs, plan_engines
from selfmoe_ray.engine.ray_pool import Death, Pools
from selfmoe_ray.engine.recovery import MOST_IN_A_ROW, Recovery
from selfmoe_ray.errors import UserError
from selfmoe_ray.generation.domain_state import Part
from selfmoe_ray.generation.parts import Key, PartAssembler, Progress, key_of
from selfmoe_ray.generation.ray_pool import EngineJob, run_pool
from selfmoe_ray.generation.stage import generate
from selfmoe_ray.machines.ray_session import beside_driver
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.records import Completion
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Making, Product


def run_generation(
    domains: list[Domain], todo: Sequence[Product], config: RunConfig, base: BaseModel, run_dir: RunDir, emit: Emit
) -> Making:
    """`generate` with vLLM engines on the Ray cluster that the caller is connected to.

    Raises UserError where the cluster lacks the devices asked for, and where the base's weights are not all there or
    no numbers, which vLLM would not notice, before any work.
    """
    names = [domain.name for domain in domains]
    plan = plan_engines(config.resources.generation, names, ray.cluster_resources())
    emit("generate", message=plan.explanation)
    check_tensors(base.path, config.trust_remote_code)
    check_values(Path(base.path))
    with EnginePools(config, base, plan, emit) as pools:
        yield from generate(domains, todo, config, run_dir, pools.complete, emit, plan.devices)


class EnginePools:
    """Engines that start with the first wave and serve all that follow; each pool is one Ray Data execution.

    Ray Data starts an engine that ended anew, with the prompts that it had. What ends it again and again ends
    the pool; then the pool starts anew, as `Recovery` says.
    """

    def __init__(
        self, config: RunConfig, base: BaseModel, plan: EnginePlan, emit: Emit, kind: type[EngineJob] = EngineJob
    ):
        self._kind = kind
        self._config = config
        self._base = base
        self._plan = plan
        self._emit = emit
        resources = config.resources.generation
        self._engine_kwargs = engine_kwargs(plan, config.generation, resources, config.trust_remote_code)
        self._pools = Pools("generate", self._start, plan, resources, emit)

    def __enter__(self) -> Self:
        self._pools.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pools.__exit__(*error)

    def complete(self, parts: list[Part]) -> Iterator[tuple[Part, list[Completion]]]:
        """Run a wave; yields each part as soon as its last completion is there."""
        assembler, progress = PartAssembler(parts), Progress(parts, self._emit)
        owed: dict[Pool, Recovery[Key]] = {}
        for pool in self._plan.pools:
            keys: list[Key] = [
                (part.phase, prompt.id) for part in parts if part.domain in pool.domains for prompt in part.prompts
            ]
            if keys:
                in_flight = pool.engines * concurrent_requests(self._engine_kwargs["max_num_seqs"])
                owed[pool] = Recovery(keys, in_flight)
        while assembler.unfinished:
            for pool, recovery in owed.items():
                if keys := recovery.next():
                    self._pools.give(pool, assembler.parts_of(keys))
            for pool, heard in self._pools.hear([pool for pool in owed if not owed[pool].is_done]):
                completions = _take_in(heard, owed[pool], assembler)
                progress.add(completions)
                yield from assembler.add(completions)
            progress.report()
        progress.report(is_last=True)

    def _start(self, pool: Pool, inbox: Any, environment: dict[str, str]) -> Any:
        name = f"generate {', '.join(pool.domains)}"
        task = run_pool.options(name=name, scheduling_strategy=beside_driver())
        job = self._kind(
            self._config, self._base.path, pool.engines, self._plan.bundles, self._engine_kwargs, environment
        )
        return task.remote(job, inbox)


def _take_in(heard: list[Completion] | Death, recovery: Recovery[Key], assembler: PartAssembler) -> list[Completion]:
    """The completions that were owed, or what stands for the one that a pool's death is blamed on.

    Raises UserError where the pool ends whatever it is given.
    """
    if not isinstance(heard, Death):
        return [each for each in heard if recovery.answered([key_of(each)])]
    given_up = recovery.died()
    if recovery.is_hopeless:
        raise UserError(
            f"generation: the engines end whatever they are given, {MOST_IN_A_ROW} prompts alone in a row; "
            f"the last: {heard.reason}\n  what is finished is kept; see the engines' output with --verbose"
        )
    return [
        assembler.without_answer(key, f"the engine ended on this prompt, alone: {heard.reason}") for key in given_up
    ]

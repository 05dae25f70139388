"""Generation on a Ray cluster: Ray Data streams prompts through pools of vLLM engines."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import ray

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.engine import orphans
from selfmoe_ray.engine.plan import EnginePlan, Pool, concurrent_requests, engine_kwargs, env_vars, plan_engines
from selfmoe_ray.generation.domain_state import Part
from selfmoe_ray.generation.parts import PartAssembler, Progress
from selfmoe_ray.generation.ray_pool import EngineJob, Inbox, run_pool
from selfmoe_ray.generation.recovery import Recovery
from selfmoe_ray.generation.stage import generate
from selfmoe_ray.machines.ray_nodes import ask_every_node
from selfmoe_ray.machines.ray_session import beside_driver
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.records import Completion
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Making, Product

_POLL_SECONDS = 1.0
_CLOSE_SECONDS = 60.0
_SWEEP_SECONDS = 30.0


def run_generation(
    domains: list[Domain], todo: Sequence[Product], config: RunConfig, base: BaseModel, run_dir: RunDir, emit: Emit
) -> Making:
    """`generate` with vLLM engines on the Ray cluster that the caller is connected to.

    Raises UserError where the cluster lacks the devices asked for, before any work.
    """
    names = [domain.name for domain in domains]
    plan = plan_engines(config.resources.generation, names, ray.cluster_resources())
    emit("generate", message=plan.explanation)
    with EnginePools(config, base, plan, emit) as pools:
        yield from generate(domains, todo, config, run_dir, pools.complete, emit, plan.devices)


class EnginePools:
    """Engines that start with the first wave and serve all that follow.

    A pool is one Ray Data execution in a Ray task of its own, fed through an inbox: starting an engine
    takes longer than a small wave. The task ends when the pool closes, and with it the placement groups
    that engines with tensor parallelism hold until the process that made them is gone.

    Ray Data starts an engine that ended anew, with the prompts that it had. What ends it again and again ends
    the pool; then the pool starts anew, as `Recovery` says.
    """

    def __init__(
        self, config: RunConfig, base: BaseModel, plan: EnginePlan, emit: Emit, kind: type[EngineJob] = EngineJob
    ):
        self._kind = kind
        self._claim = uuid.uuid4().hex
        self._config = config
        self._base = base
        self._plan = plan
        self._emit = emit
        self._running: dict[Pool, _Running] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Let the engines shut down before the devices are anyone else's; after an error, end them at once."""
        if error is not None:
            # A stopped job has three seconds until it is killed.
            for running in self._running.values():
                ray.cancel(running.stream, force=True)
            return
        for running in self._running.values():
            running.inbox.put.remote(None)
        ends = [running.stream.completed() for running in self._running.values()]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=_CLOSE_SECONDS)
            # Ray ends actors without asking them, and some time after their task.
            list(ask_every_node(orphans.sweep_after, self._claim, _SWEEP_SECONDS, seconds=2 * _SWEEP_SECONDS))

    def complete(self, parts: list[Part]) -> Iterator[tuple[Part, list[Completion]]]:
        """Run a wave; yields each part as soon as its last completion is there."""
        assembler, progress = PartAssembler(parts), Progress(parts, self._emit)
        owed = {}
        for pool in self._plan.pools:
            mine = [part for part in parts if part.domain in pool.domains]
            if mine:
                requests = concurrent_requests(self._job(pool).engine_kwargs["max_num_seqs"])
                owed[pool] = Recovery(mine, pool.engines * requests)
        while assembler.unfinished:
            for pool, recovery in owed.items():
                if portion := recovery.next():
                    self._give(pool, portion)
            for completions in self._arrivals(owed):
                progress.add(completions)
                yield from assembler.add(completions)
            progress.report()
        progress.report(is_last=True)

    def _give(self, pool: Pool, parts: list[Part]) -> None:
        if pool not in self._running:
            inbox = Inbox.options(scheduling_strategy=beside_driver()).remote()  # type: ignore[attr-defined]
            name = f"generate {', '.join(pool.domains)}"
            task = run_pool.options(name=name, scheduling_strategy=beside_driver())
            self._running[pool] = _Running(inbox, task.remote(self._job(pool), inbox))
        running = self._running[pool]
        running.inbox.put.remote(parts)
        running.heard = time.monotonic()

    def _arrivals(self, owed: dict[Pool, Recovery]) -> Iterator[list[Completion]]:
        """What pools have answered by now, and what stands for answers of those that died."""
        pools = {self._running[pool].stream: pool for pool in owed if pool in self._running}
        ready, silent = ray.wait(list(pools), num_returns=1, timeout=_POLL_SECONDS)
        for stream in ready:
            pool = pools[stream]
            try:
                completions = ray.get(next(stream))
            except (ray.exceptions.RayError, StopIteration) as error:
                yield self._bury(pool, owed[pool], error)
                continue
            self._running[pool].heard = time.monotonic()
            yield owed[pool].answered(completions)
        longest = self._config.resources.generation.stall_seconds
        for stream in silent:
            pool = pools[stream]
            if not owed[pool].is_done and time.monotonic() - self._running[pool].heard > longest:
                yield self._bury(pool, owed[pool], TimeoutError(f"no answer for {longest:g} s"))

    def _bury(self, pool: Pool, recovery: Recovery, error: Exception) -> list[Completion]:
        if not _is_death(error):
            raise error
        running = self._running.pop(pool)
        # With the task go the actors that it made, and with these their engines' processes.
        ray.cancel(running.stream, force=True)
        ray.kill(running.inbox)
        reason = str(error).strip().splitlines()[-1]
        self._emit("generate", message=f"an engine pool ended and starts anew: {reason}")
        return recovery.died(reason)

    def _job(self, pool: Pool) -> EngineJob:
        resources = self._config.resources.generation
        is_single_node = sum(node["Alive"] for node in ray.nodes()) == 1
        return self._kind(
            self._config,
            self._base.path,
            pool.engines,
            self._plan.bundles,
            engine_kwargs(self._plan, self._config.generation, resources),
            env_vars(self._plan, resources, is_single_node) | {orphans.CLAIM: self._claim},
        )


@dataclass
class _Running:
    """A pool's task. heard: when it last answered or was given something, in monotonic seconds."""

    inbox: Any
    stream: Any
    heard: float = 0.0


def _is_death(error: Exception) -> bool:
    """Whether an engine or its node went away, as opposed to a mistake that would be made again."""
    cause = getattr(error, "cause", None) or error
    deaths = (
        ray.exceptions.RayActorError,
        ray.exceptions.RaySystemError,
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.ObjectLostError,
        TimeoutError,
    )
    # An actor whose engine never came up ends with this error too.
    return isinstance(cause, deaths) and "in its creation task" not in str(cause)

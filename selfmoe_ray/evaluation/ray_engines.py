"""Evaluation on a Ray cluster: shards go to vLLM engines that stay resident for all systems."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import ray

from selfmoe_ray.config import GenerationConfig, RunConfig
from selfmoe_ray.engine.plan import EnginePlan, engine_kwargs, env_vars, plan_engines
from selfmoe_ray.evaluation.benchmark_routing import summarise
from selfmoe_ray.evaluation.cells import Answers, Shard
from selfmoe_ray.mixture.checkpoint import read_spec
from selfmoe_ray.run.storage import Storage

# One that an engine works on and one that waits for it, while this process scores.
_SHARDS_PER_ENGINE = 2


@dataclass(frozen=True)
class EngineJob:
    """All that an actor needs to run an engine; mixture: its folder in the run at `run`, a path or URI."""

    run: str
    mixture: str
    base_model: str
    engine_kwargs: dict[str, Any]


class Engine:
    """A vLLM engine of a mixture, once it is started."""

    def start(self, job: EngineJob) -> None:
        """Load the mixture. No constructor, because Ray passes on only the text of what one raises."""
        from selfmoe_ray.engine import orphans

        orphans.claim()
        # Forking a process that has threads, as every actor has, can lock up the child.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        from selfmoe_ray.evaluation.gated_lm import GatedLM

        self._files = contextlib.ExitStack()
        folder = self._files.enter_context(Storage(job.run).local_folder_to_read(job.mixture))
        self._experts = list(read_spec(folder).experts)
        self._lm = GatedLM(str(folder), hf_overrides={"mixse_base": job.base_model}, **job.engine_kwargs)

    def respond(self, gate: str, requests: list[Any]) -> tuple[list[Any], float]:
        """The answers to lm-eval requests under a gate, and the seconds that they took."""
        start = time.monotonic()
        return self._lm.respond(gate, requests), time.monotonic() - start

    def trace(self, requests: list[Any]) -> dict[str, Any]:
        """How MiXSE routes the tokens of requests and their answers (`benchmark_routing.summarise`)."""
        return summarise(self._lm.trace(requests), self._experts)

    def close(self) -> None:
        """End the engine."""
        self._lm.close()
        self._files.close()


class Engines:
    """The engines of one mixture, as many as the plan has, until the block ends."""

    def __init__(self, job: EngineJob, plan: EnginePlan, environment: dict[str, str]):
        actor: Any = ray.remote(num_cpus=plan.cpus * plan.tensor_parallel_size, num_gpus=plan.gpus)(Engine)
        options = {"runtime_env": {"env_vars": environment}}
        count = sum(pool.engines for pool in plan.pools)
        self._actors = [actor.options(**options).remote() for _ in range(count)]
        self._starting = [actor.start.remote(job) for actor in self._actors]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Let the engines shut down before their devices are anyone else's; after an error, end them at once."""
        if error is None:
            ray.get([actor.close.remote() for actor in self._actors])
        for actor in self._actors:
            ray.kill(actor)

    def answer(self, shards: Iterable[Shard]) -> Iterator[Answers]:
        """Have each shard answered by the engine that is free first. Raises UserError where none can start."""
        ray.get(self._starting)
        waiting, free = iter(shards), list(self._actors) * _SHARDS_PER_ENGINE
        running: dict[Any, tuple[Any, Shard]] = {}
        while True:
            while free and (shard := next(waiting, None)) is not None:
                actor = free.pop(0)
                running[actor.respond.remote(shard.cell.gate, shard.requests)] = (actor, shard)
            if not running:
                return
            (ready,), _ = ray.wait(list(running), num_returns=1)
            actor, shard = running.pop(ready)
            free.append(actor)
            responses, seconds = ray.get(ready)
            yield Answers(shard, responses, seconds)

    def trace(self, requests: list[Any]) -> dict[str, Any]:
        """As `Engine.trace`, by one engine."""
        ray.get(self._starting)
        return ray.get(self._actors[0].trace.remote(requests))


def start_engines(config: RunConfig, run: str, mixture: str, dtype: str, max_model_len: int) -> Engines:
    """Engines for a mixture of a run on the cluster that the caller is connected to.

    Devices are those of generation (`resources.generation`). Raises UserError where the cluster lacks them.
    """
    resources = config.resources.generation
    plan = plan_engines(resources, [mixture], ray.cluster_resources())
    shape = GenerationConfig.model_validate({"dtype": dtype, "max_model_len": max_model_len})
    is_single_node = sum(node["Alive"] for node in ray.nodes()) == 1
    job = EngineJob(run, mixture, config.base_model, engine_kwargs(plan, shape, resources))
    return Engines(job, plan, env_vars(plan, resources, is_single_node))

"""Evaluation on a Ray cluster: shards go to vLLM engines that stay resident for all systems."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, groupby
from typing import Any, Self

import ray

from selfmoe_ray.config import GenerationConfig, RunConfig
from selfmoe_ray.engine.plan import EnginePlan, engine_kwargs, plan_engines
from selfmoe_ray.engine.ray_pool import Death, Pools, receive
from selfmoe_ray.engine.recovery import Recovery
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.benchmark_routing import summarise
from selfmoe_ray.evaluation.cells import Answers, Shard
from selfmoe_ray.mixture.checkpoint import read_spec
from selfmoe_ray.run.events import Emit, silent
from selfmoe_ray.run.storage import Storage

# One that an engine works on and one that waits for it, while this process scores.
_SHARDS_PER_ENGINE = 2
_SECONDS_BETWEEN_BEATS = 5.0

Key = tuple[int, Any]  # the number of a shard, and an item of it


@dataclass(frozen=True)
class EngineJob:
    """All that a task needs to run an engine; mixture: its folder in the run at `run`, a path or URI."""

    run: str
    mixture: str
    base_model: str
    engine_kwargs: dict[str, Any]


@dataclass(frozen=True)
class Traced:
    """Requests whose routing is traced, all at once."""

    requests: Sequence[Any]
    items: Sequence[Any] = ("all",)


@dataclass(frozen=True)
class Work:
    """lm-eval requests to answer under a gate; without one, to trace how MiXSE routes their tokens.

    id: of the answer as well, since an inbox may change the order of what is put into it.
    """

    id: int
    gate: str | None
    requests: Sequence[Any]


@ray.remote(num_returns="streaming", max_retries=0, max_calls=1)
def run_engine(job: EngineJob, inbox: Any) -> Iterator[tuple[int, Any, float]]:
    """A vLLM engine of a mixture; yields, for all work that the inbox receives, its id, the answer and the seconds."""
    # Forking a process that has threads, as every worker of Ray has, can lock up the child.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from selfmoe_ray.evaluation.gated_lm import GatedLM

    with Storage(job.run).local_folder_to_read(job.mixture) as folder:
        experts = list(read_spec(folder).experts)
        lm = GatedLM(str(folder), hf_overrides={"mixse_base": job.base_model}, **job.engine_kwargs)
        is_closed = threading.Event()
        threading.Thread(target=_end_with_core, args=(lm, is_closed), daemon=True).start()
        lm.model.on_step = _beat_into(inbox)
        for works in receive(inbox):
            for work in works:
                start = time.monotonic()
                yield work.id, _answer(lm, work, experts), time.monotonic() - start
        is_closed.set()
        lm.close()


def _answer(lm: Any, work: Work, experts: list[str]) -> Any:
    try:
        if work.gate is None:
            return summarise(lm.trace(work.requests), experts)
        return lm.respond(work.gate, work.requests)
    except Exception:
        if lm.is_dead:
            os._exit(1)
        raise


def _end_with_core(lm: Any, is_closed: threading.Event) -> None:
    """Ends this process when its engine's core has died: vLLM may wait for the core's answer for ever."""
    while not is_closed.wait(0.5):
        if lm.is_dead:
            os._exit(1)


def _beat_into(inbox: Any) -> Callable[[], None]:
    last = float("-inf")

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_BEATS:
            last = time.monotonic()
            inbox.beat.remote()

    return beat


@dataclass
class _Engine:
    """One engine's debts. given: by the work's id, the numbers and shards that are in its inbox or in hand."""

    recovery: Recovery[Key]
    given: dict[int, tuple[int, Shard | Traced]] = field(default_factory=dict)


class Engines:
    """The engines of one mixture, as many as the plan has, until the block ends.

    One that ends or hangs starts anew and is given what it owes; what it ends on every time is given up alone.
    """

    def __init__(self, job: EngineJob, plan: EnginePlan, config: RunConfig, emit: Emit):
        self._job = job
        self._plan = plan
        self._resources = config.resources.generation
        self._pools = Pools("eval", self._start, plan, self._resources, emit)
        self._ids = count()
        self._count = sum(pool.engines for pool in plan.pools)

    def __enter__(self) -> Self:
        self._pools.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pools.__exit__(*error)

    def answer(self, shards: Iterable[Shard]) -> Iterator[Answers]:
        """Have each shard answered by the engine that is free first, some after a restart in several pieces.

        Raises UserError where no engine can start, and, after all else is answered, for items that end engines.
        """
        for shard, responses, seconds in self._run(shards):
            yield Answers(shard, responses, seconds)

    def trace(self, requests: list[Any]) -> dict[str, Any]:
        """How MiXSE routes the tokens of requests and their answers (`benchmark_routing.summarise`), by one engine.

        Raises UserError where the requests end engines.
        """
        [(_, routing, _)] = self._run([Traced(requests)])
        return dict(routing)

    def _run(self, shards: Iterable[Any]) -> Iterator[tuple[Any, Any, float]]:
        waiting = enumerate(shards)
        asked: dict[int, Shard | Traced] = {}
        engines = {
            name: _Engine(Recovery([], sys.maxsize, self._resources.max_failures)) for name in range(self._count)
        }
        given_up: dict[str, str] = {}
        while True:
            for name, engine in engines.items():
                self._give_work(name, engine, waiting, asked)
            busy = [name for name, engine in engines.items() if not engine.recovery.is_done]
            if not busy:
                break
            for name, heard in self._pools.hear(busy):
                engine = engines[name]
                if isinstance(heard, Death):
                    engine.given.clear()
                    lost = engine.recovery.died()
                    given_up |= {_describe(asked[number], item): heard.reason for number, item in lost}
                    if engine.recovery.is_hopeless:
                        raise _refusal(given_up, "the engines end whatever they are given")
                else:
                    work, found, seconds = heard
                    number, shard = engine.given.pop(work)
                    engine.recovery.answered((number, item) for item in shard.items)
                    yield shard, found, seconds
        if given_up:
            raise _refusal(given_up, "an engine ends every time")

    def _give_work(
        self, name: int, engine: _Engine, waiting: Iterator[tuple[int, Any]], asked: dict[int, Shard | Traced]
    ) -> None:
        """Give an engine what it owes, and new shards where it has few."""
        while len({number for number, _ in engine.recovery.owed}) < _SHARDS_PER_ENGINE:
            if (new := next(waiting, None)) is None:
                break
            number, asked[number] = new
            engine.recovery.add((number, item) for item in asked[number].items)
        works = []
        for number, keys in groupby(engine.recovery.next(), key=lambda key: key[0]):
            shard = replace(asked[number], items=[item for _, item in keys])
            gate = shard.cell.gate if isinstance(shard, Shard) else None
            works.append(Work(next(self._ids), gate, shard.requests))
            engine.given[works[-1].id] = number, shard
        if works:
            self._pools.give(name, works)

    def _start(self, name: int, inbox: Any, environment: dict[str, str]) -> Any:
        plan = self._plan
        task = run_engine.options(
            name=f"evaluate {self._job.mixture}",
            num_cpus=plan.cpus * plan.tensor_parallel_size,
            num_gpus=plan.gpus,
            runtime_env={"env_vars": environment},
        )
        return task.remote(self._job, inbox)


def _describe(shard: Any, item: Any) -> str:
    if isinstance(shard, Traced):
        return f"the routing of {shard.requests[0].task_name}"
    task, document = item
    return f"{shard.cell.name}, item {document} of {task}"


def _refusal(given_up: dict[str, str], problem: str) -> UserError:
    lines = [f"  {where}: {reason}" for where, reason in given_up.items()]
    return UserError(
        "\n".join([f"eval: {problem}, even alone, on", *lines])
        + "\n  what is finished is kept; see the engines' output with --verbose"
    )


def start_engines(
    config: RunConfig, run: str, mixture: str, dtype: str, max_model_len: int, emit: Emit = silent
) -> Engines:
    """Engines for a mixture of a run on the cluster that the caller is connected to.

    Devices are those of generation (`resources.generation`). Raises UserError where the cluster lacks them.
    """
    resources = config.resources.generation
    plan = plan_engines(resources, [mixture], ray.cluster_resources())
    shape = GenerationConfig.model_validate({"dtype": dtype, "max_model_len": max_model_len})
    job = EngineJob(run, mixture, config.base_model, engine_kwargs(plan, shape, resources, config.trust_remote_code))
    return Engines(job, plan, config, emit)

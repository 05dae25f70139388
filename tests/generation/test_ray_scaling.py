"""Engines that only sleep, on several Ray nodes: whether prompts keep all of them full."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.config import parse_config
from selfmoe_ray.engine.plan import concurrent_requests, plan_engines
from selfmoe_ray.generation.domain_state import Part, Prompt
from selfmoe_ray.generation.ray_pool import EngineJob
from selfmoe_ray.generation.ray_stage import EnginePools
from selfmoe_ray.run.events import silent

# Prompts that an engine works on at once, and the seconds that each takes.
BATCH, SECONDS = 8, 1.0
PROMPTS_AN_ENGINE = 128


class SleepingEngine:
    """Answers with its node's id and when it worked on the prompt."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(BATCH)

    async def __call__(self, batch: dict[str, Any]) -> Any:
        import ray

        (row,) = batch["__data"]
        async with self._free:
            start = time.time()
            await asyncio.sleep(SECONDS)
        text = f"{ray.get_runtime_context().get_node_id()} {start} {time.time()}"
        yield {"__data": [{**row, "generated_text": text, "num_input_tokens": 1, "num_generated_tokens": 1}]}


class SleepingJob(EngineJob):
    """A pool of sleeping engines, laid out as vLLM's are."""

    def answer(self, prompts: Any) -> Any:
        import ray

        requests = concurrent_requests(BATCH)
        return prompts.map_batches(
            SleepingEngine,
            compute=ray.data.ActorPoolStrategy(size=self.engines, max_tasks_in_flight_per_actor=requests),
            max_concurrency=requests,
            batch_size=1,
            num_cpus=1,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and four nodes with one each."""
    import ray
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    # Workers cannot import the tests.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(4):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def in_work_of() -> dict[int, float]:
    """What one engine had in work on average, once that was seen."""
    return {}


@pytest.mark.faults
@pytest.mark.parametrize("engines", [1, 2, 4])
def test_as_many_prompts_are_worked_on_as_engines_take(
    engines: int, cluster: Any, tiny_model_dir: Callable[..., Path], in_work_of: dict[int, float]
) -> None:
    import ray

    resources = {"generation": {"engines": engines}}
    config = parse_config({"generation": {"max_model_len": 128}, "resources": resources})
    plan = plan_engines(config.resources.generation, ["math", "coding", "law", "art", "food"], ray.cluster_resources())
    base = BaseModel("tiny", str(tiny_model_dir()), "")
    parts = [
        Part(
            "math",
            "brainstorm",
            f"000-{number:04d}",
            tuple(Prompt(f"{number}/{row}", "word", row) for row in range(32)),
        )
        for number in range(PROMPTS_AN_ENGINE * engines // 32)
    ]
    with EnginePools(config, base, plan, silent, SleepingJob) as pools:
        answers = [row.text.split() for _, rows in pools.complete(parts) for row in rows]
    nodes, begins, ends = zip(*((node, float(begin), float(end)) for node, begin, end in answers), strict=True)
    assert len(answers) == PROMPTS_AN_ENGINE * engines and len(set(nodes)) == engines
    # Prompts in work at a time, on average from the first to the last.
    in_work = sum(end - begin for begin, end in zip(begins, ends, strict=True)) / (max(ends) - min(begins))
    of_one = in_work_of.setdefault(1, in_work)
    assert in_work >= 0.9 * engines * of_one and of_one >= 0.9 * BATCH

"""Generation on a Ray cluster: Ray Data streams prompts through pools of vLLM engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray.data.datasource import Datasource, ReadTask

from selfmoe_ray.base_model import BaseModel, load_tokenizer
from selfmoe_ray.config import BrainstormConfig, RespondConfig, RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.events import Emit
from selfmoe_ray.generation import prompts
from selfmoe_ray.generation.assembly import PartAssembler, Progress
from selfmoe_ray.generation.engines import (
    EnginePlan,
    Pool,
    concurrent_requests,
    engine_kwargs,
    env_vars,
    plan_engines,
)
from selfmoe_ray.generation.generate import generate
from selfmoe_ray.generation.selection import Part
from selfmoe_ray.records import Completion
from selfmoe_ray.run_dir import RunDir

_POLL_SECONDS = 1.0
_CLOSE_SECONDS = 60.0
_ERROR = "__inference_error__"


def run_generation(domains: list[Domain], config: RunConfig, base: BaseModel, run_dir: RunDir, emit: Emit) -> None:
    """`generate` with vLLM engines on the Ray cluster that the caller is connected to.

    Raises UserError where the cluster lacks the devices asked for, before any work.
    """
    names = [domain.name for domain in domains]
    plan = plan_engines(config.resources.generation, names, ray.cluster_resources())
    emit("generate", message=plan.explanation)
    with EnginePools(config, base, plan, emit) as pools:
        generate(domains, config, base, run_dir, pools.complete, emit)


@dataclass(frozen=True)
class EngineJob:
    """All that a task needs to run a pool of engines."""

    config: RunConfig
    model_path: str
    engines: int
    bundles: list[dict[str, float]]
    engine_kwargs: dict[str, Any]
    env_vars: dict[str, str]


class EnginePools:
    """Engines that start with the first wave and serve all that follow.

    A pool is one Ray Data execution in a Ray task of its own, fed through an inbox: starting an engine
    takes longer than a small wave. The task ends when the pool closes, and with it the placement groups
    that engines with tensor parallelism hold until the process that made them is gone.
    """

    def __init__(self, config: RunConfig, base: BaseModel, plan: EnginePlan, emit: Emit):
        self._config = config
        self._base = base
        self._plan = plan
        self._emit = emit
        self._inboxes: dict[Pool, Any] = {}
        self._streams: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Let the engines shut down before the devices are anyone else's."""
        for inbox in self._inboxes.values():
            inbox.put.remote(None)
        if self._streams:
            ends = [stream.completed() for stream in self._streams]
            ray.wait(ends, num_returns=len(ends), timeout=_CLOSE_SECONDS)

    def complete(self, parts: list[Part]) -> Iterator[tuple[Part, list[Completion]]]:
        """Run a wave; yields each part as soon as its last completion is there."""
        assembler, progress = PartAssembler(parts), Progress(parts, self._emit)
        for pool in self._plan.pools:
            mine = [part for part in parts if part.domain in pool.domains]
            if mine:
                self._inbox(pool).put.remote(mine)
        while assembler.unfinished:
            ready, _ = ray.wait(self._streams, num_returns=1, timeout=_POLL_SECONDS)
            for stream in ready:
                completions = ray.get(next(stream))
                progress.add(completions)
                yield from assembler.add(completions)
            progress.report()
        progress.report(is_last=True)

    def _inbox(self, pool: Pool) -> Any:
        if pool not in self._inboxes:
            self._inboxes[pool] = Inbox.remote()  # type: ignore[attr-defined]
            self._streams.append(run_pool.remote(self._job(pool), self._inboxes[pool]))
        return self._inboxes[pool]

    def _job(self, pool: Pool) -> EngineJob:
        resources = self._config.resources.generation
        is_single_node = sum(node["Alive"] for node in ray.nodes()) == 1
        return EngineJob(
            self._config,
            self._base.path,
            pool.engines,
            self._plan.bundles,
            engine_kwargs(self._plan, self._config.generation, resources),
            env_vars(self._plan, resources, is_single_node),
        )


@ray.remote(num_cpus=0)
class Inbox:
    """A queue of parts; None says that no more will come."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[list[Part] | None] = asyncio.Queue()

    async def put(self, parts: list[Part] | None) -> None:
        """Add parts."""
        await self._queue.put(parts)

    async def get(self) -> list[Part] | None:
        """Wait for parts."""
        return await self._queue.get()


class PromptFeed(Datasource):
    """A dataset that grows while it is read: one row a prompt, as its parts arrive in the inbox."""

    def __init__(self, inbox: Any, job: EngineJob):
        super().__init__()
        self._inbox = inbox
        self._job = job

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known ahead."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One task that lasts as long as the inbox is open."""
        from ray.data.block import BlockMetadata

        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._read, unknown)]

    def _read(self) -> Iterator[Any]:
        import pyarrow as pa

        tokenizer = load_tokenizer(self._job.model_path, self._job.config.trust_remote_code)
        while parts := ray.get(self._inbox.get.remote()):
            for part in parts:
                # Token ids and not text: the tokenizer's owner knows where BOS belongs.
                tokens = tokenizer([prompt.text for prompt in part.prompts])["input_ids"]
                yield pa.table(
                    {
                        "id": [prompt.id for prompt in part.prompts],
                        "domain": [part.domain] * len(tokens),
                        "phase": [part.phase] * len(tokens),
                        "seed": [prompt.seed for prompt in part.prompts],
                        "tokenized_prompt": tokens,
                    }
                )


# A process of its own, as the data context that it sets is the process's.
@ray.remote(num_cpus=0, num_returns="streaming", max_retries=0, max_calls=1)
def run_pool(job: EngineJob, inbox: Any) -> Iterator[list[Completion]]:
    """One Ray Data execution over all that the inbox receives; yields completions in any order."""
    from ray.data import DataContext
    from ray.data.llm import build_processor

    context = DataContext.get_current()
    context.enable_progress_bars = False
    # A block a row: prompts reach the engine, and completions the run, without waiting for others.
    context.target_max_block_size = 1
    # Tasks without a CPU are bounded by this alone; each would be a process more.
    light = {"num_cpus": 0, "concurrency": job.engines}
    processor = build_processor(
        _processor_config(job),
        preprocess=_sampling_of(job.config),
        postprocess=_completion_of(job.config),
        preprocess_map_kwargs=light,
        postprocess_map_kwargs=light,
    )
    feed = ray.data.read_datasource(
        PromptFeed(inbox, job), override_num_blocks=1, concurrency=1, ray_remote_args={"num_cpus": 0}
    )
    for block in processor(feed).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield [_to_completion(row) for row in block.to_pylist()]


def _processor_config(job: EngineJob) -> Any:
    from ray.data.llm import vLLMEngineProcessorConfig

    requests = concurrent_requests(job.engine_kwargs["max_num_seqs"])
    return vLLMEngineProcessorConfig(
        model_source=job.model_path,
        engine_kwargs=job.engine_kwargs,
        runtime_env={"env_vars": job.env_vars},
        concurrency=(job.engines, job.engines),
        batch_size=1,
        max_concurrent_batches=requests,
        max_tasks_in_flight_per_actor=requests,
        placement_group_config={"bundles": job.bundles},
        accelerator_type=None,
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )


def _sampling_of(config: RunConfig) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The preprocess function: a row's sampling parameters, by its phase."""
    phases: dict[str, BrainstormConfig | RespondConfig] = {
        "brainstorm": config.generation.brainstorm,
        "respond": config.generation.respond,
    }

    def sampling(row: dict[str, Any]) -> dict[str, Any]:
        phase = phases[row["phase"]]
        return {
            "sampling_params": {
                "temperature": phase.temperature,
                "top_p": phase.top_p,
                "max_tokens": phase.max_tokens,
                "stop": list(prompts.STOP),
                "seed": row["seed"],
            }
        }

    return sampling


def _completion_of(config: RunConfig) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The postprocess function: a completion's fields. Ray's stage drops the finish reason."""
    generation = config.generation
    max_tokens = {"brainstorm": generation.brainstorm.max_tokens, "respond": generation.respond.max_tokens}

    def completion(row: dict[str, Any]) -> dict[str, Any]:
        prompt_tokens, tokens = row["num_input_tokens"], row["num_generated_tokens"]
        is_cut = tokens >= max_tokens[row["phase"]] or prompt_tokens + tokens >= generation.max_model_len
        return {
            "id": row["id"],
            "domain": row["domain"],
            "phase": row["phase"],
            "text": row["generated_text"],
            "finish_reason": "length" if is_cut else "stop",
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
        }

    return completion


def _to_completion(row: dict[str, Any]) -> Completion:
    error = row.get(_ERROR) or ""
    return Completion(
        id=row["id"],
        domain=row["domain"],
        phase=row["phase"],
        text="" if error else row["text"],
        finish_reason="error" if error else row["finish_reason"],
        prompt_tokens=0 if error else row["prompt_tokens"],
        completion_tokens=0 if error else row["completion_tokens"],
        error=error,
    )

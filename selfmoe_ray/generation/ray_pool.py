"""A pool of vLLM engines: a Ray task that runs Ray Data over prompts that arrive in an inbox."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.data.datasource import Datasource, ReadTask

from selfmoe_ray.base_model import load_tokenizer
from selfmoe_ray.config import BrainstormConfig, GenerationConfig, RespondConfig, RunConfig
from selfmoe_ray.engine import patches
from selfmoe_ray.engine.plan import FINAL_ONLY_KEY, concurrent_requests
from selfmoe_ray.engine.ray_pool import receive
from selfmoe_ray.generation import prompts
from selfmoe_ray.machines.ray_session import beside_driver
from selfmoe_ray.run.records import Completion, Phase

_ROWS_PER_BLOCK = 8
# Columns of ray.data.llm's stages.
_DATA_COLUMN, _ERROR = "__data", "__inference_error__"


@dataclass(frozen=True)
class EngineJob:
    """All that a task needs to run a pool of engines."""

    config: RunConfig
    model_path: str
    engines: int
    bundles: list[dict[str, float]]
    engine_kwargs: dict[str, Any]
    env_vars: dict[str, str]

    @property
    def block_bytes(self) -> int:
        """Ray Data's target for a block: above all that a block of prompts can hold."""
        bytes_per_token, most_but_tokens = 8, 2**16
        return _ROWS_PER_BLOCK * (self.engine_kwargs["max_model_len"] + 1) * bytes_per_token + most_but_tokens

    def answer(self, prompts: Any) -> Any:
        """A dataset of prompts, as `PromptFeed` makes them, to one of the engines' answers."""
        from ray.data.llm import build_processor

        processor = build_processor(_processor_config(self))
        failures = self.config.resources.generation.max_failures
        patches.checked(patches.POOL_RESTARTS)
        for name in processor.list_stage_names():
            # Without a limit a prompt that ends its engine would end engines for ever.
            limits = {"max_restarts": failures, "max_task_retries": failures}
            processor.get_stage_by_name(name).map_batches_kwargs.update(limits)
        # The feed's rows are what the engine stage reads, and its answers are read as they are: each step between
        # would be a Ray task for every block, on the cores that a CPU engine computes with.
        patches.checked(patches.POOL_STEPS)
        processor.preprocess = processor.postprocess = None
        return processor(prompts)


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
        tokenizer = load_tokenizer(self._job.model_path, self._job.config.trust_remote_code)
        for parts in receive(self._inbox):
            for part in parts:
                # Token ids and not text: the tokenizer's owner knows where BOS belongs.
                tokens = tokenizer([prompt.text for prompt in part.prompts])["input_ids"]
                sampling = sampling_params(self._job.config.generation, part.phase)
                # One token too many is refused as well as a thousand, and a block's size stays known.
                longest = self._job.engine_kwargs["max_model_len"] + 1
                rows = [
                    {
                        "id": prompt.id,
                        "domain": part.domain,
                        "phase": part.phase,
                        "tokenized_prompt": ids[:longest],
                        "sampling_params": {**sampling, "seed": prompt.seed},
                    }
                    for prompt, ids in zip(part.prompts, tokens, strict=True)
                ]
                for start in range(0, len(rows), _ROWS_PER_BLOCK):
                    yield _block(rows[start : start + _ROWS_PER_BLOCK], self._job.block_bytes)


def _block(rows: list[dict[str, Any]], size: int) -> Any:
    """A table of the engine stage's rows that Ray Data sends on at once and whole.

    It cuts a stream of rows by bytes alone: what is below the target waits for more, which may never
    come, and what is 1.5 times above is cut into pieces. A filler puts every table in between; the
    engine stage drops it.
    """
    import pyarrow as pa

    column = pa.array(rows)
    filler = pa.array([b"\0" * max(0, size + size // 4 - column.nbytes)] + [b""] * (len(rows) - 1), pa.large_binary())
    return pa.table({_DATA_COLUMN: column, "filler": filler})


def sampling_params(generation: GenerationConfig, phase: Phase) -> dict[str, Any]:
    """vLLM's sampling parameters of a phase, without the seed."""
    chosen: BrainstormConfig | RespondConfig = getattr(generation, phase)
    return {
        "temperature": chosen.temperature,
        "top_p": chosen.top_p,
        "max_tokens": chosen.max_tokens,
        "stop": list(prompts.STOP),
        "extra_args": {FINAL_ONLY_KEY: True},
    }


# A process of its own, as the data context that it sets is the process's.
@ray.remote(num_cpus=0, num_returns="streaming", max_retries=0, max_calls=1)
def run_pool(job: EngineJob, inbox: Any) -> Iterator[list[Completion]]:
    """One Ray Data execution over all that the inbox receives; yields completions in any order."""
    from ray.data import DataContext

    resources = job.config.resources.generation
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = job.block_bytes
    # A share of the cluster for each operator is worked out anew at every turn, half of the executor's time.
    # Here one operator feeds and one pool of fixed size works.
    context.op_resource_reservation_enabled = False
    # The first engine to be there would take most of a small wave.
    context.wait_for_min_actors_s = math.ceil(resources.stall_seconds)
    feed = ray.data.read_datasource(
        PromptFeed(inbox, job),
        override_num_blocks=1,
        concurrency=1,
        ray_remote_args={"num_cpus": 0, "scheduling_strategy": beside_driver()},
    )
    for block in job.answer(feed).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield [to_completion(row, job.config.generation) for row in block[_DATA_COLUMN].to_pylist()]


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
        # As many blocks as an engine takes prompts: a block makes room for another only after its slowest
        # answer, and with few of them an engine stands half idle while prompts wait outside.
        max_tasks_in_flight_per_actor=requests,
        placement_group_config={"bundles": job.bundles},
        accelerator_type=None,
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )


def to_completion(row: dict[str, Any], generation: GenerationConfig) -> Completion:
    """What the engine stage made of a prompt. It drops vLLM's finish reason, which the lengths tell."""
    error = row.get(_ERROR) or ""
    same = {name: row[name] for name in ("id", "domain", "phase")}
    if error:
        return Completion(**same, text="", finish_reason="error", prompt_tokens=0, completion_tokens=0, error=error)
    prompt_tokens, tokens = row["num_input_tokens"], row["num_generated_tokens"]
    max_tokens = getattr(generation, row["phase"]).max_tokens
    is_cut = tokens >= max_tokens or prompt_tokens + tokens >= generation.max_model_len
    return Completion(
        **same,
        text=row["generated_text"],
        finish_reason="length" if is_cut else "stop",
        prompt_tokens=prompt_tokens,
        completion_tokens=tokens,
        error="",
    )

"""Generation on a Ray cluster: Ray Data streams prompts through pools of vLLM engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from selfmoe_ray.base_model import BaseModel, load_tokenizer
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.events import Emit
from selfmoe_ray.generation import prompts
from selfmoe_ray.generation.assembly import PartAssembler, Progress
from selfmoe_ray.generation.engines import (
    EnginePlan,
    concurrent_batches,
    engine_kwargs,
    env_vars,
    plan_engines,
)
from selfmoe_ray.generation.generate import generate
from selfmoe_ray.generation.selection import Part
from selfmoe_ray.records import Completion
from selfmoe_ray.run_dir import RunDir

_POLL_SECONDS = 1.0
_ERROR = "__inference_error__"


def run_generation(
    domains: list[Domain], config: RunConfig, base: BaseModel, run_dir: RunDir, emit: Emit
) -> None:
    """`generate` with vLLM engines on the Ray cluster that the caller is connected to.

    Raises UserError where the cluster lacks the devices asked for, before any work.
    """
    names = [domain.name for domain in domains]
    plan = plan_engines(config.resources.generation, names, ray.cluster_resources())
    emit("generate", message=plan.explanation)
    generate(domains, config, base, run_dir, VllmComplete(config, base, plan, emit), emit)


@dataclass(frozen=True)
class EngineJob:
    """All that a task needs to run prompts on its pool of engines."""

    config: RunConfig
    model_path: str
    engines: int
    bundles: list[dict[str, float]]
    engine_kwargs: dict[str, Any]
    env_vars: dict[str, str]


class VllmComplete:
    """A `Complete` that runs each pool's parts in a Ray task of its own.

    The task ends with its wave: engines with tensor parallelism leave their placement groups behind
    until the process that made them ends, and so nothing of a wave outlives it.
    """

    def __init__(self, config: RunConfig, base: BaseModel, plan: EnginePlan, emit: Emit):
        self._config = config
        self._base = base
        self._plan = plan
        self._emit = emit

    def __call__(self, parts: list[Part]) -> Iterator[tuple[Part, list[Completion]]]:
        """Yield each part as soon as its last completion is there."""
        assembler, progress = PartAssembler(parts), Progress(parts, self._emit)
        task = ray.remote(num_cpus=0, max_retries=0)(run_on_engines).options(num_returns="streaming")
        streams = [task.remote(job, mine) for job, mine in self._jobs(parts)]
        try:
            while streams:
                ready, streams = ray.wait(streams, num_returns=1, timeout=_POLL_SECONDS)
                for stream in ready:
                    reference = next(stream, None)
                    if reference is None:
                        continue
                    streams.append(stream)
                    completions = ray.get(reference)
                    progress.add(completions)
                    yield from assembler.add(completions)
                progress.report()
        finally:
            for stream in streams:
                ray.cancel(stream, force=False)
        progress.report(is_last=True)
        if assembler.unfinished:
            lost = ", ".join(f"{part.domain} {part.phase} {part.id}" for part in assembler.unfinished)
            raise RuntimeError(f"the engines returned no completion for some prompts of: {lost}")

    def _jobs(self, parts: list[Part]) -> Iterator[tuple[EngineJob, list[Part]]]:
        resources = self._config.resources.generation
        single_node = sum(node["Alive"] for node in ray.nodes()) == 1
        for pool in self._plan.pools:
            mine = [part for part in parts if part.domain in pool.domains]
            if mine:
                yield (
                    EngineJob(
                        self._config,
                        self._base.path,
                        pool.engines,
                        self._plan.bundles,
                        engine_kwargs(self._plan, self._config.generation, resources),
                        env_vars(self._plan, resources, single_node),
                    ),
                    mine,
                )


def run_on_engines(job: EngineJob, parts: list[Part]) -> Iterator[list[Completion]]:
    """Run parts through one Ray Data execution; yields completions in batches, in any order."""
    from ray.data import DataContext
    from ray.data.llm import build_processor

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    batch_size = min(job.config.resources.generation.batch_size, job.config.generation.part_size)
    processor = build_processor(
        _processor_config(job, batch_size),
        preprocess=_sampling_of(job.config),
        postprocess=_completion_of(job.config),
        preprocess_map_kwargs={"num_cpus": 0},
        postprocess_map_kwargs={"num_cpus": 0},
    )
    for block in processor(_dataset(job, parts, batch_size)).iter_batches(
        batch_size=None, batch_format="pyarrow"
    ):
        yield [_to_completion(row) for row in block.to_pylist()]


def _processor_config(job: EngineJob, batch_size: int) -> Any:
    from ray.data.llm import vLLMEngineProcessorConfig

    return vLLMEngineProcessorConfig(
        model_source=job.model_path,
        engine_kwargs=job.engine_kwargs,
        runtime_env={"env_vars": job.env_vars},
        concurrency=(job.engines, job.engines),
        batch_size=batch_size,
        max_concurrent_batches=concurrent_batches(job.engine_kwargs["max_num_seqs"], batch_size),
        placement_group_config={"bundles": job.bundles},
        accelerator_type=None,
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )


def _dataset(job: EngineJob, parts: list[Part], batch_size: int) -> Any:
    """One block a batch, so that a part's rows are handed on as soon as its batches are done."""
    import pyarrow as pa

    tokenizer = load_tokenizer(job.model_path, job.config.trust_remote_code)
    tables = []
    for part in parts:
        for start in range(0, len(part.prompts), batch_size):
            rows = part.prompts[start : start + batch_size]
            tables.append(
                pa.table(
                    {
                        "id": [row.id for row in rows],
                        "domain": [part.domain] * len(rows),
                        "phase": [part.phase] * len(rows),
                        "seed": [row.seed for row in rows],
                        # Token ids and not text: the tokenizer's owner knows where BOS belongs.
                        "tokenized_prompt": tokenizer([row.text for row in rows])["input_ids"],
                    }
                )
            )
    return ray.data.from_arrow(tables)


def _sampling_of(config: RunConfig) -> Any:
    """The preprocess function: a row's sampling parameters, by its phase."""
    phases = {"brainstorm": config.generation.brainstorm, "respond": config.generation.respond}

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


def _completion_of(config: RunConfig) -> Any:
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

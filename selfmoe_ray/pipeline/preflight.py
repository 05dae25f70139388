"""What a run checks before any work, beside its base: names, prompts that will be made, dtypes of its devices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median
from typing import Any

from selfmoe_ray.base_model.outline import Outline, beyond
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.domains.prompt import format_prompt
from selfmoe_ray.domains.rows import split_seeds
from selfmoe_ray.engine.preflight import check_base, check_dtype, fast_dtype_of_engines
from selfmoe_ray.errors import UserError
from selfmoe_ray.generation import prompts
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.records import Seed

# Draws of seeds that stand for all that a run makes.
_DRAWS = 16


def preflight(config: RunConfig, domains: Sequence[Domain], outline: Outline, emit: Emit) -> None:
    """Raises UserError for what a stage would fail on, and warns of what it would lose rows by."""
    if config.generation.dtype == "bfloat16" and config.resources.generation.gpus_per_engine != 0:
        check_dtype(config.generation.dtype, "generation.dtype", fast_dtype_of_engines())
    for domain in domains:
        _Tokens(config, domain, outline, emit).check()


def read_base(config: RunConfig, base: Any, emit: Emit) -> tuple[RunConfig, Outline]:
    """The config with what the base allows in place of what it does not, and the base without its weights.

    Raises UserError as `check_base`.
    """
    outline = check_base(base)
    return fit_context(config, outline.context_length, emit), outline


def fit_context(config: RunConfig, context: int | None, emit: Emit) -> RunConfig:
    """The config with the base's context as `generation.max_model_len`, where that is more and nothing extends it."""
    generation, given = config.generation, config.resources.generation
    is_extended = {"max_model_len", "hf_overrides"} & given.engine_kwargs.keys() or any(
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in environment for environment in (given.env_vars, os.environ)
    )
    if context is None or generation.max_model_len <= context or is_extended:
        return config
    emit("run", message=f"generation.max_model_len: {generation.max_model_len} is more than the base's context; "
         f"{context} tokens are used")  # fmt: skip
    return config.model_copy(update={"generation": generation.model_copy(update={"max_model_len": context})})


class _Tokens:
    """The prompts and rows of one domain, in tokens of the base."""

    def __init__(self, config: RunConfig, domain: Domain, outline: Outline, emit: Emit):
        self._config = config
        self._domain = domain
        self._outline = outline
        self._emit = emit
        self._seeds = split_seeds(domain, config.generation.seeds_per_domain, config.seed)[0]

    def check(self) -> None:
        """Raises UserError where prompts of this domain leave no room, or hold what the base has no embedding for."""
        tasks = [self._count(prompts.render_task(seed.instruction, seed.input)) for seed in self._seeds]
        outputs = [self._count(seed.output) for seed in self._seeds]
        brainstorm = [self._count(prompts.brainstorm_prompt(self._domain, shown)) for shown in self._draw("brainstorm")]
        respond = [
            self._count(prompts.respond_prefix(self._domain, shown)) + round(median(tasks))
            for shown in self._draw("respond")
        ]
        self._check_room("brainstorm", brainstorm, median(tasks), "task")
        self._check_room("respond", respond, median(outputs), "response")
        self._check_rows()

    def _count(self, text: str) -> int:
        ids = self._outline.tokenizer(text)["input_ids"]
        if unknown := beyond(ids, self._outline):
            token = self._outline.tokenizer.convert_ids_to_tokens(unknown[0])
            raise UserError(
                f"domain {self._domain.name!r}: its seeds have the token {token!r} (id {unknown[0]}), which the base "
                f"has no embedding for: it has {self._outline.embedded_tokens}; take the token out of the domain's "
                "files, or give the tokenizer files of this model"
            )
        return len(ids)

    def _draw(self, phase: str) -> list[list[Seed]]:
        count = getattr(self._config.generation, phase).seeds_in_context
        return [prompts.draw_seeds(self._seeds, count, self._domain.name, phase, number) for number in range(_DRAWS)]

    def _check_room(self, phase: str, lengths: Sequence[int], needed: float, what: str) -> None:
        longest, chosen = self._config.generation.max_model_len, getattr(self._config.generation, phase)
        room, where = longest - median(lengths), f"domain {self._domain.name!r}"
        if room < needed:
            raise UserError(
                f"{where}: a {phase} prompt with {chosen.seeds_in_context} seeds takes about {median(lengths):.0f} of "
                f"the {longest} tokens of generation.max_model_len and leaves {max(room, 0):.0f}, but a {what} of its "
                f"seeds takes {needed:.0f}; lower generation.{phase}.seeds_in_context, shorten the seeds, or raise "
                f"generation.max_model_len{self._limit()}"
            )
        tight = sum(length + chosen.max_tokens > longest for length in lengths)
        if tight:
            self._warn(
                f"{tight} of {len(lengths)} {phase} prompts leave less than the {chosen.max_tokens} tokens of "
                f"generation.{phase}.max_tokens; what is cut there is rejected"
            )

    def _check_rows(self) -> None:
        """Of training: what its seeds say of the rows that are made like them."""
        longest = self._config.training.max_length
        starts = [self._count(format_prompt(seed.instruction, seed.input)) for seed in self._seeds]
        rows = [start + self._count(seed.output) for start, seed in zip(starts, self._seeds, strict=True)]
        if min(starts) >= longest:
            raise UserError(
                f"domain {self._domain.name!r}: training.max_length is {longest} tokens, but the shortest of its seeds "
                f"takes {min(starts)} before its response; raise training.max_length{self._limit()}"
            )
        context = self._outline.context_length or longest
        if too_long := sum(row > min(longest, context) for row in rows):
            self._warn(
                f"{too_long} of {len(rows)} seeds are longer than {min(longest, context)} tokens, the "
                f"{'training.max_length, and are cut there' if longest <= context else 'context of the base'}"
            )

    def _limit(self) -> str:
        context = self._outline.context_length
        return f" (the base's context: {context})" if context else ""

    def _warn(self, message: str) -> None:
        self._emit("seeds", message=f"warning: {message}", domain=self._domain.name)

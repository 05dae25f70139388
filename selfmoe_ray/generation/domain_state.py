"""What a domain has so far, and what to generate next: a pure function of its raw completions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfmoe_ray.config import GenerationConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.generation import filters, prompts
from selfmoe_ray.generation.parsing import parse_response, parse_task
from selfmoe_ray.generation.shapes import SHAPES
from selfmoe_ray.generation.similarity import NearDuplicates
from selfmoe_ray.run.records import Completion, Example, Instruction, Phase, Reject, Seed

# Yields before anything is measured, worth as much as so many observations.
_PRIOR_YIELD = {"brainstorm": 0.6, "respond": 0.75}
_PRIOR_WEIGHT = 8
# No plan asks for more than this many completions for each one that is missing.
_MAX_OVERSAMPLE = 10.0


@dataclass(frozen=True)
class Prompt:
    """One request to the engine; `seed` is its sampler's."""

    id: str
    text: str
    seed: int


@dataclass(frozen=True)
class Part:
    """Prompts whose completions are written, and read back, as one file."""

    domain: str
    phase: Phase
    id: str
    prompts: tuple[Prompt, ...]


# Runs parts on an engine and yields each with its completions, in any order, as it finishes.
Complete = Callable[[list[Part]], Iterator[tuple[Part, list[Completion]]]]


@dataclass
class PhaseCounts:
    """Completions of one phase: how many there were, how many were used, and their tokens."""

    completions: int = 0
    valid: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """As JSON values; `rejected` has the most frequent reason first."""
        share = self.valid / self.completions if self.completions else 0.0
        return {**vars(self), "rejected": dict(self.rejected.most_common()), "yield": round(share, 4)}


class DomainState:
    """Instructions and examples of one domain, folded over its parts in id order.

    It depends on nothing but the domain, the shown seeds, the config and the completions, so a run
    that was stopped anywhere folds what it finds and goes on as if it had not been.
    """

    def __init__(self, domain: Domain, shown: Sequence[Seed], config: GenerationConfig, seed: int):
        self.domain = domain
        self.shown = list(shown)
        self.config = config
        self.seed = seed
        self.examples: list[Example] = []
        self.rejects: list[Reject] = []
        self.counts: dict[str, PhaseCounts] = {"brainstorm": PhaseCounts(), "respond": PhaseCounts()}
        self._rounds: set[str] = set()
        self._unanswered: dict[str, Instruction] = {}
        limit = config.filters.max_rouge_l
        # Held-out seeds count too: what is trained on must not hold what is measured on.
        seed_tasks = (filters.join_task(each.instruction, each.input) for each in domain.seeds)
        self._seeds_seen = NearDuplicates(limit, seed_tasks)
        self._tasks_seen = NearDuplicates(limit)

    @property
    def missing(self) -> int:
        """Examples still to be made."""
        return max(0, self.config.examples_per_domain - len(self.examples))

    def fold(self, completions: Sequence[Completion]) -> None:
        """Take in a finished part of either phase."""
        for completion in completions:
            counts = self.counts[completion.phase]
            counts.completions += 1
            counts.prompt_tokens += completion.prompt_tokens
            counts.completion_tokens += completion.completion_tokens
            if completion.phase == "brainstorm":
                self._rounds.add(completion.id.split("/")[1])
            take = self._take_task if completion.phase == "brainstorm" else self._take_response
            reason = _check_engine(completion) or take(completion)
            if reason is None:
                counts.valid += 1
                continue
            counts.rejected[reason] += 1
            self.rejects.append(Reject(completion.id, completion.domain, completion.phase, reason, completion.text))
            if completion.phase == "respond":
                self._unanswered.pop(completion.id, None)

    def _take_task(self, completion: Completion) -> str | None:
        task = parse_task(completion.text)
        if task is None:
            return "malformed"
        reason = filters.check_task(*task, self.domain.shape, self.config.filters)
        if reason:
            return reason
        text = filters.join_task(*task)
        if self._seeds_seen.has_like(text):
            return "echo_of_seed"
        if self._tasks_seen.has_like(text):
            return "near_duplicate"
        self._tasks_seen.add(text)
        self._unanswered[completion.id] = Instruction(completion.id, completion.domain, *task)
        return None

    def _take_response(self, completion: Completion) -> str | None:
        task = self._unanswered[completion.id]
        response = parse_response(completion.text)
        reason = filters.check_response(task.instruction, task.input, response, self.domain.shape, self.config.filters)
        if reason:
            return reason
        text = filters.join_task(task.instruction, task.input)
        response = SHAPES[self.domain.shape].mend_response(text, response)
        del self._unanswered[completion.id]
        self.examples.append(Example(task.id, task.domain, task.instruction, task.input, response))
        return None

    def plan(self, wave: int) -> list[Part]:
        """The parts of a wave, given all parts of the waves before it; [] when there is nothing to do.

        Responses for as many instructions as are likely to be needed, and brainstorming for what
        those will leave missing, in at most `max_rounds` waves.
        """
        if not self.missing:
            return []
        respond_yield = self._expected_yield("respond")
        # A margin of about one standard deviation: another wave costs more than a few completions.
        wanted = math.ceil((self.missing + math.sqrt(self.missing)) / respond_yield)
        to_answer = list(self._unanswered.values())[:wanted]
        parts = list(self.respond_parts(wave, to_answer))
        lacking = (wanted - len(to_answer)) * respond_yield
        if len(self._rounds) < self.config.max_rounds and len(to_answer) < wanted:
            parts += self._brainstorm_parts(wave, self._count_to_brainstorm(wave, lacking, respond_yield))
        return parts

    def _count_to_brainstorm(self, wave: int, lacking: float, respond_yield: float) -> int:
        if wave == 0:
            return math.ceil(self.config.examples_per_domain * self.config.oversample)
        each = max(1 / _MAX_OVERSAMPLE, self._expected_yield("brainstorm") * respond_yield)
        return math.ceil(lacking / each)

    def _expected_yield(self, phase: Phase) -> float:
        counts = self.counts[phase]
        return (counts.valid + _PRIOR_WEIGHT * _PRIOR_YIELD[phase]) / (counts.completions + _PRIOR_WEIGHT)

    def _brainstorm_parts(self, wave: int, count: int) -> Iterator[Part]:
        for number, rows in enumerate(_chunks(range(count), self.config.part_size)):
            part = f"{wave:03d}-{number:04d}"
            ids = [f"{self.domain.name}/{wave:03d}/{number:04d}/{row:04d}" for row in range(len(rows))]
            yield Part(self.domain.name, "brainstorm", part, tuple(map(self._brainstorm_prompt, ids)))

    def _brainstorm_prompt(self, id: str) -> Prompt:
        count = self.config.brainstorm.seeds_in_context
        shown = prompts.draw_seeds(self.shown, count, self.seed, "brainstorm", id)
        text = prompts.brainstorm_prompt(self.domain, shown)
        return Prompt(id, text, prompts.sampling_seed(self.seed, "brainstorm", id))

    def respond_parts(self, wave: int, tasks: Sequence[Instruction]) -> Iterator[Part]:
        """Prompts that ask for these tasks' responses, with the seeds that this wave shows."""
        count = self.config.respond.seeds_in_context
        shown = prompts.draw_seeds(self.shown, count, self.seed, "respond", self.domain.name, wave)
        prefix = prompts.respond_prefix(self.domain, shown)
        for number, rows in enumerate(_chunks(tasks, self.config.part_size)):
            yield Part(
                self.domain.name,
                "respond",
                f"{wave:03d}-{number:04d}",
                tuple(
                    Prompt(
                        task.id,
                        prompts.respond_prompt(prefix, task.instruction, task.input),
                        prompts.sampling_seed(self.seed, "respond", task.id),
                    )
                    for task in rows
                ),
            )


def _check_engine(completion: Completion) -> str | None:
    if completion.error:
        return "engine_error"
    if completion.finish_reason == "length":
        return "truncated"
    return None if completion.text.strip() else "empty"


def _chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))

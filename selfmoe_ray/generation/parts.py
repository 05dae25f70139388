"""Completions arrive in any order; parts are complete when all of theirs are there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from selfmoe_ray.generation.domain_state import Part
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.records import Completion

Key = tuple[str, str]  # phase and id of a prompt

_SECONDS_BETWEEN_REPORTS = 5.0


class PartAssembler:
    """Groups the completions of a wave by part."""

    def __init__(self, parts: Iterable[Part]):
        self._part_of: dict[Key, Part] = {(part.phase, prompt.id): part for part in parts for prompt in part.prompts}
        self._rows: dict[Part, dict[str, Completion]] = {part: {} for part in self._part_of.values()}

    def add(self, completions: Iterable[Completion]) -> Iterator[tuple[Part, list[Completion]]]:
        """Take completions in; yields each part that they complete, its rows in the order of its prompts."""
        for completion in completions:
            part = self._part_of[key_of(completion)]
            rows = self._rows[part]
            rows[completion.id] = completion
            if len(rows) == len(part.prompts):
                del self._rows[part]
                yield part, [rows[prompt.id] for prompt in part.prompts]

    @property
    def unfinished(self) -> list[Part]:
        """Parts that still lack completions."""
        return list(self._rows)

    def parts_of(self, keys: Sequence[Key]) -> list[Part]:
        """The parts with these of their prompts alone."""
        wanted = set(keys)
        return [
            replace(part, prompts=tuple(prompt for prompt in part.prompts if (part.phase, prompt.id) in wanted))
            for part in dict.fromkeys(map(self._part_of.__getitem__, keys))
        ]

    def without_answer(self, key: Key, error: str) -> Completion:
        """What stands for the completion of a prompt that is given up."""
        phase = self._part_of[key].phase
        return Completion(key[1], self._part_of[key].domain, phase, "", "error", 0, 0, error)


def key_of(completion: Completion) -> Key:
    """The prompt that it completes."""
    return completion.phase, completion.id


class Progress:
    """Tells how far a wave is, every few seconds."""

    def __init__(self, parts: Iterable[Part], emit: Emit):
        self._emit = emit
        self._total: Counter[str] = Counter()
        for part in parts:
            self._total[_label(part.phase, part.domain)] += len(part.prompts)
        self._done: Counter[str] = Counter()
        self._reported = self._tokens = 0
        self._since: tuple[float, int, int] | None = None
        self._begun = self._last = time.monotonic()

    def add(self, completions: Iterable[Completion]) -> None:
        """Count completions that have arrived."""
        for completion in completions:
            self._done[_label(completion.phase, completion.domain)] += 1
            self._tokens += completion.completion_tokens
        if self._since is None:
            self._since = time.monotonic(), self._tokens, self._done.total()

    def report(self, is_last: bool = False) -> None:
        """Emit the counts and generated tokens a second where it is time to, or at the end."""
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_REPORTS and not is_last:
            return
        if is_last and self._reported == self._done.total():
            return
        self._last = now
        if self._since is None:
            self._emit("generate", message="waiting for the engines' first answers", seconds=round(now - self._begun))
            return
        # Measured from the first arrival on: what came with it took an unknown share of the start.
        start, tokens, done = self._since
        seconds = max(now - start, 1e-9)
        self._reported = self._done.total()
        shown: dict[str, Any] = {label: f"{self._done[label]}/{total}" for label, total in self._total.items()}
        shown["tokens_per_second"] = round((self._tokens - tokens) / seconds, 1)
        if self._reported > done:
            left = self._total.total() - self._reported
            shown["seconds_left"] = round(left * seconds / (self._reported - done))
        self._emit("generate", message="completions", **shown)


def _label(phase: str, domain: str) -> str:
    return f"{phase}.{domain}"

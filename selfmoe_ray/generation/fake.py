"""A deterministic stand-in for the engine: writes from the sampler's seed alone, in microseconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from selfmoe_ray.generation.domain_state import Part, Prompt
from selfmoe_ray.run.records import Completion

_SYLLABLES = ("ba", "ke", "lo", "mi", "nu", "pa", "ri", "so", "tu", "va")
_WORDS = [first + second for first in _SYLLABLES for second in _SYLLABLES]
_WORDS_A_TASK = 24


def fake_text(prompt: Prompt, phase: str) -> str:
    """A task, or a response that ends in a number."""
    rng = random.Random(prompt.seed)
    if phase == "respond":
        return f" Take the parts one by one.\nThe answer is {rng.randrange(1000)}"
    return f" {' '.join(rng.choices(_WORDS, k=_WORDS_A_TASK))}, how many are left?"


def fake_complete(
    parts: list[Part], write: Callable[[Prompt, str], str] = fake_text
) -> Iterator[tuple[Part, list[Completion]]]:
    """A `Complete` without an engine; `write(prompt, phase)` gives the text."""
    for part in parts:
        yield part, [_completion(part, prompt, write(prompt, part.phase)) for prompt in part.prompts]


def _completion(part: Part, prompt: Prompt, text: str) -> Completion:
    return Completion(
        id=prompt.id,
        domain=part.domain,
        phase=part.phase,
        text=text,
        finish_reason="stop",
        prompt_tokens=len(prompt.text.split()),
        completion_tokens=len(text.split()),
        error="",
    )

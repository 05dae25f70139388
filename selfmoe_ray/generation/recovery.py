"""What a pool of engines is given when it has died: fewer prompts at a time, until the one that ends it is alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from selfmoe_ray.errors import UserError
from selfmoe_ray.generation.domain_state import Part, Prompt
from selfmoe_ray.run.records import Completion

# Prompts of a chunk, by how often the pool has died in a row over the same prompts; None: all there are.
_CHUNKS = (None, 32, 1)
# Prompts that may end a pool one after the other, each alone, before the pool itself is held to be broken.
_MOST_IN_A_ROW = 3

Key = tuple[str, str]  # phase and id


class Recovery:
    """The prompts of a wave that one pool still owes.

    The prompt that ended a pool is among those that were in its engines: the first that are not answered, as
    prompts are taken in order. in_flight: how many that may be; where it proves too few, it grows.
    """

    def __init__(self, parts: Iterable[Part], in_flight: int):
        self._owed: dict[Key, tuple[Part, Prompt]] = {
            (part.phase, prompt.id): (part, prompt) for part in parts for prompt in part.prompts
        }
        self._in_flight = in_flight
        self._given: dict[Key, None] = {}
        self._suspects: dict[Key, None] = {}
        self._deaths = self._lost_in_a_row = 0

    @property
    def is_done(self) -> bool:
        """Whether every prompt was answered or given up."""
        return not self._owed

    def next(self) -> list[Part]:
        """The prompts to give now, as parts of them; [] while given ones are out, and at the end."""
        if self._given or self.is_done:
            return []
        if not self._suspects:
            self._deaths = 0
        size = _CHUNKS[self._deaths]
        chosen = list(self._suspects)[:size] if size else list(self._owed)
        self._given = dict.fromkeys(chosen)
        parts: dict[Part, list[Prompt]] = {}
        for key in chosen:
            part, prompt = self._owed[key]
            parts.setdefault(part, []).append(prompt)
        return [replace(part, prompts=tuple(prompts)) for part, prompts in parts.items()]

    def answered(self, completions: Iterable[Completion]) -> list[Completion]:
        """Take answers in; returns those that were owed: after a restart one may come twice."""
        new = []
        for completion in completions:
            key = completion.phase, completion.id
            if self._owed.pop(key, None) is not None:
                self._lost_in_a_row = 0
                new.append(completion)
            self._given.pop(key, None)
            self._suspects.pop(key, None)
        return new

    def died(self, reason: str) -> list[Completion]:
        """The pool has ended; returns what takes the place of the answer that will not come, if one is to blame.

        Raises UserError where the pool ends whatever it is given.
        """
        blamed, self._given = list(self._given), {}
        if _CHUNKS[self._deaths] == 1:
            return [self._give_up(blamed[0], reason)] if blamed else []
        if self._deaths == 0:
            self._suspects = dict.fromkeys(blamed[: self._in_flight])
            self._in_flight *= 2
        else:
            self._suspects = dict.fromkeys(blamed)
        self._deaths += 1
        return []

    def _give_up(self, key: Key, reason: str) -> Completion:
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= _MOST_IN_A_ROW:
            raise UserError(
                f"generation: the engines end whatever they are given, {self._lost_in_a_row} prompts alone in a row; "
                f"the last: {reason}\n  what is finished is kept; see the engines' output with --verbose"
            )
        part, prompt = self._owed.pop(key)
        # The others are cleared: the pool goes on with all of them at once.
        self._suspects, self._deaths = {}, 0
        error = f"the engine ended on this prompt, alone: {reason}"
        return Completion(prompt.id, part.domain, part.phase, "", "error", 0, 0, error)

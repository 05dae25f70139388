"""What makes a completion unusable; each check returns a short stable reason or None."""

from __future__ import annotations

import re

from selfmoe_ray.config import FilterConfig
from selfmoe_ray.generation.shapes import SHAPES

_PLACEHOLDER = re.compile(
    r"(?<![\w\])])\[\s*(?:your|insert|enter|add|name|first name|last name|person|number|city|country|date|"
    r"topic|company|product|place|placeholder|blank|value|text|answer|option)\b[\w' /-]*\]"
    r"|<\s*(?:your|insert|enter|name|placeholder|answer)\b[^>\n]*>"
    r"|\blorem ipsum\b|\bTODO\b|\bTBD\b|(?:^|\s)(?:\.\.\.|\u2026)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_NGRAM = 4
_MIN_WORDS_TO_LOOP = 24
_MIN_DISTINCT_NGRAMS = 0.6
_MAX_REPEATED_LINES = 3
_MAX_NON_ASCII_LETTERS = 0.1


def check_task(instruction: str, input: str, shape: str, config: FilterConfig) -> str | None:
    """Why a brainstormed task is unusable; duplicates are the caller's."""
    task = join_task(instruction, input)
    words = len(task.split())
    if words < config.min_instruction_words:
        return "too_short"
    if words > config.max_instruction_words:
        return "too_long"
    return _check_text(task) or SHAPES[shape].check_task(task)


def check_response(instruction: str, input: str, response: str, shape: str, config: FilterConfig) -> str | None:
    """Why a response to a valid task is unusable."""
    if not response:
        return "empty"
    words = len(response.split())
    if words < config.min_response_words:
        return "too_short"
    if words > config.max_response_words:
        return "too_long"
    return _check_text(response) or SHAPES[shape].check_response(join_task(instruction, input), response)


def join_task(instruction: str, input: str) -> str:
    """Instruction and input as the one text that is checked and compared."""
    return f"{instruction}\n{input}".strip()


def _check_text(text: str) -> str | None:
    if _PLACEHOLDER.search(text):
        return "placeholder"
    if _is_loop(text):
        return "repetition"
    return None if _is_english(text) else "not_english"


def _is_loop(text: str) -> bool:
    """Small models fall into loops: the same words, or the same line, again and again."""
    run, previous = 1, ""
    for line in filter(None, map(str.strip, text.splitlines())):
        run = run + 1 if line == previous else 1
        previous = line
        if run > _MAX_REPEATED_LINES:
            return True
    words = text.lower().split()
    if len(words) < _MIN_WORDS_TO_LOOP:
        return False
    ngrams = [tuple(words[start : start + _NGRAM]) for start in range(len(words) - _NGRAM + 1)]
    return len(set(ngrams)) < _MIN_DISTINCT_NGRAMS * len(ngrams)


def _is_english(text: str) -> bool:
    """A cheap stand-in: mostly ASCII letters, where there are letters at all."""
    letters = [character for character in text if character.isalpha()]
    foreign = sum(not character.isascii() for character in letters)
    return foreign <= _MAX_NON_ASCII_LETTERS * len(letters)

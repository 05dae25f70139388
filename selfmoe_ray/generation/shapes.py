"""The form that a domain's tasks and responses have; each check returns a reject reason or None."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass

OPTION_LETTERS = "ABCD"
# "A. text", "A) text", "(A) text", at the start of a line or after a space.
_OPTION = re.compile(r"(?:^|(?<=\s))\(?([A-Z])[.):](?=\s|$)")
_OPTION_GLUED = re.compile(r"(?:^|(?<=\s))\(?([A-Z])[.):]\s*(?=\S)")
_CHOICE = re.compile(r"^\W*([A-D])(?:[.):]|\s*$|\s*\n)|\b(?:answer|option|choice)\b\W*(?:is\W+)?\(?([A-D])\b")
_ASSERT_LINE = re.compile(r"^\s*assert\b.*$", re.MULTILINE)
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NUMBER = re.compile(r"\d")
_ANSWER_PHRASE = re.compile(r"\banswer\b\s*(?:is\b|:|=)\s*\S", re.IGNORECASE)
_SHORT_ANSWER_WORDS = 20


@dataclass(frozen=True)
class Shape:
    """Checks of one form. task: of the instruction and input as one text. response: of both texts."""

    task: Callable[[str], str | None]
    response: Callable[[str, str], str | None]


def options(task: str) -> dict[str, str]:
    """The options of a multiple-choice task by letter, in order; {} unless they are A, B, C, ... once each."""
    for pattern in (_OPTION, _OPTION_GLUED):
        found = list(pattern.finditer(task))
        # "A." may also end or start a sentence: the options are the last run that starts with A.
        starts = [index for index, match in enumerate(found) if match[1] == "A"]
        if not starts:
            continue
        run = found[starts[-1] :]
        letters = [match[1] for match in run]
        if letters != [chr(ord("A") + index) for index in range(len(letters))]:
            continue
        ends = [match.start() for match in run[1:]] + [len(task)]
        return {match[1]: task[match.end() : end].strip() for match, end in zip(run, ends, strict=True)}
    return {}


def python_source(response: str) -> str:
    """The code of a response: its first fenced block where it has one, else all of it."""
    fenced = _FENCE.search(response)
    return fenced[1] if fenced else response


def _multiple_choice_task(task: str) -> str | None:
    found = options(task)
    if "".join(found) != OPTION_LETTERS:
        return "not_four_options"
    texts = [text.casefold().strip(" .") for text in found.values()]
    if not all(texts) or len(set(texts)) < len(texts):
        return "options_not_distinct"
    return None


def _multiple_choice_response(task: str, response: str) -> str | None:
    if _CHOICE.search(response):
        return None
    named = [letter for letter, text in options(task).items() if text.casefold() in response.casefold()]
    return None if len(named) == 1 else "no_option_chosen"


def _python_task(task: str) -> str | None:
    lines = _ASSERT_LINE.findall(task)
    if not lines:
        return None
    try:
        ast.parse("\n".join(line.strip() for line in lines))
    except (SyntaxError, ValueError):
        return "asserts_not_python"
    return None if _asserted_names(task) else "asserts_call_nothing"


def _python_response(task: str, response: str) -> str | None:
    try:
        tree = ast.parse(python_source(response))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "not_python"
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    if not defined:
        return "no_function"
    asserted = _asserted_names(task)
    return "other_function_name" if asserted and not asserted & defined else None


def _asserted_names(task: str) -> set[str]:
    """Names of all functions that the task's asserts call; builtins such as `sorted` may be among them."""
    names = set()
    for line in _ASSERT_LINE.findall(task):
        try:
            tree = ast.parse(line.strip())
        except (SyntaxError, ValueError):
            continue
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        names.update(call.func.id for call in calls if isinstance(call.func, ast.Name))
    return names


def _worked_solution_response(task: str, response: str) -> str | None:
    return None if _NUMBER.search(_last_line(response)) else "no_final_number"


def _single_answer_response(task: str, response: str) -> str | None:
    if _ANSWER_PHRASE.search(response) or len(_last_line(response).split()) <= _SHORT_ANSWER_WORDS:
        return None
    return "no_final_answer"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _any_task(task: str) -> str | None:
    return None


def _any_response(task: str, response: str) -> str | None:
    return None


SHAPES = {
    "multiple_choice": Shape(_multiple_choice_task, _multiple_choice_response),
    "python_function": Shape(_python_task, _python_response),
    "worked_solution": Shape(_any_task, _worked_solution_response),
    "single_answer": Shape(_any_task, _single_answer_response),
    "free": Shape(_any_task, _any_response),
}

"""The form that a domain's tasks and responses have."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable
from dataclasses import dataclass

OPTION_LETTERS = "ABCD"
# "A. text", "A) text", "(A) text": each on its own line, or one after the other in a line.
_OPTION_LAYOUTS = (
    re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]*", re.MULTILINE),
    re.compile(r"(?:^|(?<=\s))\(?([A-Z])[.):](?=\s|$)"),
)
# The chosen letter: at the very start, with the option's text after it or not, or after "answer is".
_CHOICE_FIRST = re.compile(r"\W*([A-D])(?:[.):]+[ \t]*([^\n]*)|\s*$|\s*\n)")
_CHOICE_SAID = re.compile(r"\b(?:answer|option|choice)\b\W*(?:is\W+)?\(?([A-D])\b")
_ASSERT_LINE = re.compile(r"^\s*assert\b.*$", re.MULTILINE)
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NUMBER = re.compile(r"\d")
_ANSWER_PHRASE = re.compile(r"\banswer\b\s*(?:is\b|:|=)\s*\S", re.IGNORECASE)
_SHORT_ANSWER_WORDS = 20


@dataclass(frozen=True)
class Shape:
    """One form. Texts: the task is its instruction and input as one.

    check_task, check_response: a reject reason or None. mend_response: the response that is kept.
    """

    check_task: Callable[[str], str | None] = lambda task: None
    check_response: Callable[[str, str], str | None] = lambda task, response: None
    mend_response: Callable[[str, str], str] = lambda task, response: response


def options(task: str) -> dict[str, str]:
    """The options of a multiple-choice task by letter, in order; {} unless they are A, B, C, ..."""
    for layout in _OPTION_LAYOUTS:
        found = list(layout.finditer(task))
        # "A." may also end a sentence of the question: the options are the last run that starts with A.
        starts = [index for index, match in enumerate(found) if match[1] == "A"]
        run = found[starts[-1] :] if starts else []
        letters = "".join(match[1] for match in run)
        if len(run) > 1 and string.ascii_uppercase.startswith(letters):
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
    if _CHOICE_FIRST.match(response) or _CHOICE_SAID.search(response):
        return None
    named = [text for text in options(task).values() if text.casefold() in response.casefold()]
    return None if len(named) == 1 else "no_option_chosen"


def _mend_letter(task: str, response: str) -> str:
    """Small models choose an option by its text and put any letter before it: the text decides."""
    choice = _CHOICE_FIRST.match(response)
    if choice is None or not choice[2]:
        return response
    named = choice[2].casefold().strip(" .")
    letters = [letter for letter, text in options(task).items() if text.casefold().strip(" .") == named]
    if len(letters) != 1:
        return response
    return response[: choice.start(1)] + letters[0] + response[choice.end(1) :]


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
    names: set[str] = set()
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


SHAPES = {
    "multiple_choice": Shape(_multiple_choice_task, _multiple_choice_response, _mend_letter),
    "python_function": Shape(_python_task, _python_response),
    "worked_solution": Shape(check_response=_worked_solution_response),
    "single_answer": Shape(check_response=_single_answer_response),
    "free": Shape(),
}

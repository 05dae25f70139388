from __future__ import annotations

import pytest

from selfmoe_ray.generation.shapes import SHAPES, options

QUESTION = "Which is a metal?\nA. iron\nB. wood\nC. wool\nD. glass"
CODE_TASK = "Write add(a, b).\nassert add(1, 2) == 3\nassert sorted(add([2], [1])) == [1, 2]"


@pytest.mark.parametrize(
    "text",
    [QUESTION, "Which?\n(A) iron\n(B) wood\n(C) wool\n(D) glass", "Which? A) iron B) wood C) wool D) glass",
     "Plan A. is old. Which?\nA.iron\nB.wood\nC.wool\nD.glass"],
)  # fmt: skip
def test_options_are_found_in_every_common_layout(text: str) -> None:
    assert options(text) == {"A": "iron", "B": "wood", "C": "wool", "D": "glass"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (QUESTION, None),
        ("Which is a metal?", "not_four_options"),
        (QUESTION + "\nE. clay", "not_four_options"),
        ("Which?\nA. iron\nB. wood\nC. wool", "not_four_options"),
        ("Which?\nA. iron\nC. wood\nB. wool\nD. glass", "not_four_options"),
        ("Which?\nA. iron\nB. Iron.\nC. wool\nD. glass", "options_not_distinct"),
        ("Which?\nA. iron\nB. \nC. wool\nD. glass", "options_not_distinct"),
    ],
)
def test_multiple_choice_task(text: str, reason: str | None) -> None:
    assert SHAPES["multiple_choice"].check_task(text) == reason


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("A", None),
        ("(A) iron", None),
        ("A. iron\nIt conducts.", None),
        ("B", None),
        ("The answer is (A).", None),
        ("It must be iron.", None),
        ("It is one of them.", "no_option_chosen"),
        ("E. clay", "no_option_chosen"),
        ("iron or glass", "no_option_chosen"),
    ],
)
def test_multiple_choice_response(response: str, reason: str | None) -> None:
    assert SHAPES["multiple_choice"].check_response(QUESTION, response) == reason


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        ("A. iron\nIt conducts.", "A. iron\nIt conducts."),
        ("A. Wool.\nIt is warm.", "C. Wool.\nIt is warm."),
        ("(A) glass", "(D) glass"),
        ("B. clay", "B. clay"),
        ("B", "B"),
        ("iron", "iron"),
    ],
)
def test_the_text_of_an_option_decides_its_letter(response: str, kept: str) -> None:
    assert SHAPES["multiple_choice"].mend_response(QUESTION, response) == kept


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CODE_TASK, None),
        ("Write a function that adds.", None),
        ("Write add.\nassert add(1, == 3", "asserts_not_python"),
        ("Write add.\nassert 1 == 1", "asserts_call_nothing"),
    ],
)
def test_python_task(text: str, reason: str | None) -> None:
    assert SHAPES["python_function"].check_task(text) == reason


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("def add(a, b):\n    return a + b", None),
        ("import math\ndef add(a, b):\n    return a + b", None),
        ("Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nThat is all.", None),
        ("def sum2(a, b):\n    return a + b", "other_function_name"),
        ("add = 1", "no_function"),
        ("Add the numbers up.", "not_python"),
        ("def add(a, b):", "not_python"),
    ],
)
def test_python_response(response: str, reason: str | None) -> None:
    assert SHAPES["python_function"].check_response(CODE_TASK, response) == reason


@pytest.mark.parametrize(
    ("shape", "response", "reason"),
    [
        ("worked_solution", "2 + 3 = 5.\nThe answer is 5.", None),
        ("worked_solution", "Take 5 of them.\nIt cannot be done.", "no_final_number"),
        ("single_answer", "Ann is older. So the answer is Ann.", None),
        ("single_answer", "Yes", None),
        ("single_answer", " ".join(["step"] * 40), "no_final_answer"),
        ("free", "Whatever.", None),
    ],
)
def test_other_responses(shape: str, response: str, reason: str | None) -> None:
    assert SHAPES[shape].check_response("A task.", response) == reason

from __future__ import annotations

import pytest

from selfmoe_ray.generation.parsing import parse_response, parse_task


@pytest.mark.parametrize(
    ("text", "task"),
    [
        (" Add 2 and 3.", ("Add 2 and 3.", "")),
        (" Sort.\nInput: b a c\n", ("Sort.", "b a c")),
        (" Sort.\nInput:\nb\na", ("Sort.", "b\na")),
        (" Add 2 and 3.\nInput: none", ("Add 2 and 3.", "")),
        (" Add 2 and 3.\nInput: N/A\n", ("Add 2 and 3.", "")),
        (" Add 2 and 3.\nInput: <no input>", ("Add 2 and 3.", "")),
        (" Say how many Input: labels there are.", ("Say how many Input: labels there are.", "")),
        (" Add 2 and 3.\nResponse: 5", ("Add 2 and 3.", "")),
        (" Sort.\nInput: b a\nOutput: a b\nInput: d c", ("Sort.", "b a")),
    ],
)
def test_tasks(text: str, task: tuple[str, str]) -> None:
    assert parse_task(text) == task


@pytest.mark.parametrize(
    "text",
    ["", "  \n", "\nInput: only this", " a\nInput: b\nInput: c", " a\n### Task 5\nb", " a\nInstruction: b"],
)
def test_malformed(text: str) -> None:
    assert parse_task(text) is None


def test_response_is_stripped() -> None:
    assert parse_response(" 5 \n") == "5"

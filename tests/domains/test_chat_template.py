"""The chat template renders what the experts were trained on."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from selfmoe_ray.domains.prompt import alpaca_template, format_prompt


def render(*messages: tuple[str, str], bos: str = "") -> Any:
    # As transformers compiles chat templates.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    rows = [{"role": role, "content": content} for role, content in messages]
    return environment.from_string(alpaca_template(bos)).render(messages=rows, add_generation_prompt=True)


@pytest.mark.parametrize("content", ["Name a prime.", "  padded \n", "a {{ brace }} and 'quotes'", "lines\nof\ntext"])
def test_one_turn_is_the_training_prompt(content: str) -> None:
    assert render(("user", content)) == format_prompt(content, "")


def test_bos_comes_first() -> None:
    assert render(("user", "hi"), bos="<s>") == "<s>" + format_prompt("hi", "")


def test_turns_follow_each_other_under_their_headers() -> None:
    text = render(("user", "First?"), ("assistant", "One."), ("user", "Second?"))
    assert text == format_prompt("First?", "") + "One.\n\n### Instruction:\nSecond?\n\n### Response:\n"


def test_a_system_message_opens_the_first_instruction() -> None:
    assert render(("system", "Be brief."), ("user", "Why?")) == format_prompt("Be brief.\n\nWhy?", "")

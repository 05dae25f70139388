from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfmoe_ray.config import FilterConfig
from selfmoe_ray.domains.domain import SHAPES, builtin_names, load_domain
from selfmoe_ray.generation.filters import check_response, check_task

CONFIG = FilterConfig(max_instruction_words=80, max_response_words=80)


@pytest.mark.parametrize("name", builtin_names())
def test_every_built_in_seed_passes(name: str) -> None:
    domain = load_domain(name)
    config = FilterConfig()
    for seed in domain.seeds:
        assert check_task(seed.instruction, seed.input, domain.shape, config) is None, seed
        found = check_response(seed.instruction, seed.input, seed.output, domain.shape, config)
        assert found is None, seed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How many apples has Ann?", None),
        ("Add it", "too_short"),
        (" ".join(f"word{n}" for n in range(81)), "too_long"),
        ("How old is [name] today?", "placeholder"),
        ("Greet [insert your name here] in a letter.", "placeholder"),
        ("Explain what follows. Lorem ipsum dolor sit.", "placeholder"),
        ("List the primes: 2, 3, 5, ...", "placeholder"),
        ("Sum up [number for number in range(3)] in your head.", None),
        ("Complete: the largest dinosaur was a...", None),
        ("the cat sat on the mat and " * 6, "repetition"),
        ("Count these:\none\none\none\none", "repetition"),
        ("Сколько яблок у Анны теперь?", "not_english"),
        ("Who painted the Café Terrace at Night?", None),
        ("12 * (3 + 4) = ?", None),
    ],
)
def test_task_reasons(text: str, reason: str | None) -> None:
    assert check_task(text, "", "free", CONFIG) == reason


def test_instruction_and_input_are_judged_as_one() -> None:
    assert check_task("Sort:", "b a c", "free", CONFIG) is None
    assert check_task("Which?", "A. a\nB. b\nC. c\nD. d", "multiple_choice", CONFIG) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [("5", None), ("", "empty"), (" ".join(f"word{n}" for n in range(81)), "too_long")],
)
def test_response_reasons(text: str, reason: str | None) -> None:
    assert check_response("How many?", "", text, "free", CONFIG) == reason


def test_response_below_the_least_number_of_words() -> None:
    assert check_response("How?", "", "One two.", "free", FilterConfig(min_response_words=3)) == "too_short"


@given(text=st.text(max_size=300), shape=st.sampled_from(SHAPES))
def test_any_text_gets_a_verdict(text: str, shape: str) -> None:
    for reason in (check_task(text, "", shape, CONFIG), check_response("How many?", "", text, shape, CONFIG)):
        assert reason is None or reason.replace("_", "").isalpha()

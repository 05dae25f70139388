"""Which prompts a pool is given after it died, with pools that die of some of them."""

from __future__ import annotations

from collections import Counter

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.generation.domain_state import Part, Prompt
from selfmoe_ray.generation.recovery import Recovery
from selfmoe_ray.run.records import Completion

IN_FLIGHT = 40


def make_parts(count: int, size: int = 16) -> list[Part]:
    prompts = [Prompt(f"math/000/{row // size:04d}/{row:04d}", "text", row) for row in range(count)]
    starts = range(0, count, size)
    return [Part("math", "brainstorm", f"000-{n:04d}", tuple(prompts[at : at + size])) for n, at in enumerate(starts)]


def answer(prompt: Prompt, error: str = "") -> Completion:
    return Completion(prompt.id, "math", "brainstorm", "", "stop", 1, 1, error)


def run(recovery: Recovery, poisonous: set[int], at_once: int = 24) -> tuple[dict[str, Completion], list[int]]:
    """Feed a pool that runs `at_once` prompts together and dies with all of them when one is poisonous."""
    answers: dict[str, Completion] = {}
    chunks = []
    while not recovery.is_done:
        prompts = [prompt for part in recovery.next() for prompt in part.prompts]
        chunks.append(len(prompts))
        for start in range(0, len(prompts), at_once):
            running = prompts[start : start + at_once]
            if any(prompt.seed in poisonous for prompt in running):
                new = recovery.died("killed")
                answers |= {each.id: each for each in new}
                break
            for each in recovery.answered(map(answer, running)):
                assert each.id not in answers
                answers[each.id] = each
    return answers, chunks


def test_a_healthy_pool_is_given_all_at_once() -> None:
    answers, chunks = run(Recovery(make_parts(100), IN_FLIGHT), set())
    assert len(answers) == 100 and chunks == [100]


def test_one_bad_prompt_is_found_and_costs_no_other() -> None:
    answers, chunks = run(Recovery(make_parts(200), IN_FLIGHT), {70})
    assert len(answers) == 200
    assert [prompt for prompt, each in answers.items() if each.error] == ["math/000/0004/0070"]
    assert chunks[0] == 200 and chunks[1] == 32 and chunks[-1] > 100 and len(chunks) < 40


def test_several_bad_prompts_are_all_found() -> None:
    answers, _ = run(Recovery(make_parts(100), IN_FLIGHT), {3, 50, 97})
    assert Counter(bool(each.error) for each in answers.values()) == {False: 97, True: 3}


def test_a_pool_that_was_killed_once_loses_no_prompt() -> None:
    recovery = Recovery(make_parts(100), IN_FLIGHT)
    recovery.next()
    assert recovery.died("killed") == []
    answers, chunks = run(recovery, set())
    assert len(answers) == 100 and not any(each.error for each in answers.values())
    assert chunks == [32, 8, 60], "only those that were in the engines go in chunks"


def test_a_bad_prompt_outside_of_what_was_held_to_be_in_flight_is_found_too() -> None:
    answers, _ = run(Recovery(make_parts(200), in_flight=4), {150}, at_once=200)
    assert [each.id for each in answers.values() if each.error] == ["math/000/0009/0150"]


def test_parts_keep_their_name_and_their_prompts_order() -> None:
    recovery = Recovery(make_parts(40), IN_FLIGHT)
    recovery.next()
    recovery.died("killed")
    parts = recovery.next()
    assert [(part.id, len(part.prompts)) for part in parts] == [("000-0000", 16), ("000-0001", 16)]
    assert recovery.next() == [], "while these are out"


def test_a_pool_that_always_dies_is_given_up() -> None:
    with pytest.raises(UserError, match="3 prompts alone in a row; the last: no memory"):
        recovery = Recovery(make_parts(100), IN_FLIGHT)
        for _ in range(50):
            recovery.next()
            recovery.died("no memory")

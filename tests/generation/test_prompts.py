from __future__ import annotations

from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.generation.parsing import parse_task
from selfmoe_ray.generation.prompts import (
    STOP,
    brainstorm_prompt,
    draw_seeds,
    render_task,
    respond_prefix,
    respond_prompt,
    sampling_seed,
)
from selfmoe_ray.run.records import Seed

SEEDS = tuple(Seed(f"Count to {n}.", "aloud" if n % 2 else "", f"One to {n}.") for n in range(8))
DOMAIN = Domain("sums", "The tasks are sums.", ("Short.", "True."), "Answer in a word.", "free", SEEDS)


def test_brainstorm_prompt_shows_tasks_without_their_answers() -> None:
    prompt = brainstorm_prompt(DOMAIN, SEEDS[:3])
    assert "The tasks are sums." in prompt and "- Short.\n- True.\n" in prompt
    assert all(seed.instruction in prompt and seed.output not in prompt for seed in SEEDS[:3])
    assert prompt.endswith("### Task 4\nInstruction:")


def test_brainstorm_prompts_share_all_that_comes_before_the_first_seed() -> None:
    first, second = (brainstorm_prompt(DOMAIN, shown) for shown in (SEEDS[:3], SEEDS[3:6]))
    start = first.index("### Task 1")
    assert first[:start] == second[:start]


def test_respond_prompt_shows_answered_tasks_and_ends_at_the_label() -> None:
    prompt = respond_prompt(respond_prefix(DOMAIN, SEEDS[:5]), "Count to 99.", "slowly")
    assert "Answer in a word." in prompt
    assert all(f"Response: {seed.output}\n" in prompt for seed in SEEDS[:5])
    assert prompt.endswith("Instruction: Count to 99.\nInput: slowly\nResponse:")


def test_no_task_or_response_holds_what_ends_a_completion() -> None:
    seed = Seed("First.\n\nSecond.", "a\n \n\nb", "x = 1\n\n\ny = 2")
    task = render_task(seed.instruction, seed.input)
    assert task == "Instruction: First.\nSecond.\nInput: a\nb"
    assert "Response: x = 1\ny = 2\n" in respond_prefix(DOMAIN, [seed])
    assert not any(stop in task for stop in STOP)


def test_parse_is_the_inverse_of_render() -> None:
    for seed in SEEDS:
        text = render_task(seed.instruction, seed.input).removeprefix("Instruction:")
        assert parse_task(text) == (seed.instruction, seed.input)


def test_draws_depend_on_their_key_alone() -> None:
    assert draw_seeds(SEEDS, 3, 0, "a") == draw_seeds(SEEDS, 3, 0, "a")
    assert len({tuple(draw_seeds(SEEDS, 3, 0, key)) for key in range(20)}) > 10
    assert len(set(draw_seeds(SEEDS, 5, 0, "b"))) == 5
    assert len(draw_seeds(SEEDS, 99, 0, "b")) == len(SEEDS)
    assert sampling_seed(0, "a") == sampling_seed(0, "a") != sampling_seed(1, "a")
    assert 0 <= sampling_seed(0, "a") < 2**31

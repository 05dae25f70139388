"""vLLM engines for real, on a checkpoint of random weights: slow for the engine's start alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.base_model import BaseModel, load_tokenizer
from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.engine.plan import plan_engines
from selfmoe_ray.generation.domain_state import Part, Prompt
from selfmoe_ray.generation.ray_stage import EnginePools
from selfmoe_ray.run.events import silent
from selfmoe_ray.run.records import Completion

MAX_TOKENS = 6
TEXT = "Write a Python function."


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, float]]:
    import ray

    from selfmoe_ray.machines.ray_session import ray_session

    with ray_session():
        yield ray.cluster_resources()


def make_config(**resources: Any) -> RunConfig:
    return parse_config(
        {
            "generation": {
                "dtype": "float32",
                "max_model_len": 128,
                "brainstorm": {"max_tokens": MAX_TOKENS},
                "respond": {"max_tokens": MAX_TOKENS},
            },
            "resources": {"generation": {"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "1"}, **resources}},
        }
    )


def make_part(number: int, texts: list[str], phase: str = "brainstorm", domain: str = "math") -> Part:
    rows = (Prompt(f"{domain}/000/{number:04d}/{row:04d}", text, row) for row, text in enumerate(texts))
    return Part(domain, phase, f"000-{number:04d}", tuple(rows))  # type: ignore[arg-type]


@pytest.mark.slow
def test_engines_serve_wave_after_wave(cluster: dict[str, float], tiny_model_dir: Callable[..., Path]) -> None:
    folder = str(tiny_model_dir("llama"))
    config = make_config()
    plan = plan_engines(config.resources.generation, ["math"], cluster)
    too_long = "word " * 400
    first = [make_part(0, [TEXT, TEXT + " Again."]), make_part(1, [TEXT, too_long, *[TEXT] * 16])]
    second = [make_part(0, [TEXT, TEXT], "respond")]
    with EnginePools(config, BaseModel("tiny", folder, ""), plan, silent) as pools:
        made = {part.id: rows for part, rows in pools.complete(first)}
        made_again = {part.id: rows for part, rows in pools.complete(first[:1])}
        [(_, answers)] = pools.complete(second)

    ids = load_tokenizer(folder)(TEXT)["input_ids"]
    assert ids[0] == load_tokenizer(folder).bos_token_id
    assert made["000-0000"][0].prompt_tokens == len(ids), "BOS once, as the tokenizer puts it"
    assert [row.id for row in made["000-0000"]] == [prompt.id for prompt in first[0].prompts]
    assert made_again["000-0000"] == made["000-0000"], "the sampler's seeds decide"
    good, failed, *others = made["000-0001"]
    assert good.text and len(others) == 16 and not any(row.error for row in others), "a bad row spoils no other"
    assert failed.error and failed.finish_reason == "error" and not failed.text
    assert answers[0].text == answers[1].text, "greedy, whatever the seed"
    check_lengths([*made["000-0000"], *answers])


@pytest.mark.slow
def test_each_domain_has_a_pool_where_there_are_engines_enough(
    cluster: dict[str, float], tiny_model_dir: Callable[..., Path]
) -> None:
    config = make_config(engines=2)
    plan = plan_engines(config.resources.generation, ["math", "coding"], cluster)
    parts = [make_part(0, [TEXT, TEXT + " Again."], domain=domain) for domain in ("math", "coding")]
    with EnginePools(config, BaseModel("tiny", str(tiny_model_dir("llama")), ""), plan, silent) as pools:
        made = {part.domain: rows for part, rows in pools.complete(parts)}
    assert [pool.domains for pool in plan.pools] == [("math",), ("coding",)]
    assert [row.id for row in made["coding"]] == [prompt.id for prompt in parts[1].prompts]
    assert [row.text for row in made["math"]] == [row.text for row in made["coding"]], "the same seeds and prompts"


def check_lengths(rows: list[Completion]) -> None:
    for row in rows:
        assert 0 < row.completion_tokens <= MAX_TOKENS
        assert row.finish_reason == ("length" if row.completion_tokens == MAX_TOKENS else "stop")

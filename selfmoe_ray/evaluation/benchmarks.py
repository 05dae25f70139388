"""The paper's benchmarks by the names of their lm-eval tasks, and any other lm-eval task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from selfmoe_ray.errors import UserError

Preset = Literal["paper", "full"]


@dataclass(frozen=True)
class Benchmark:
    """An lm-eval task or group under its own prompt and scoring.

    num_fewshot: examples in a prompt; None for the task's own number. A task that asks for 0 or brings
    its examples along keeps them. metric: the score of the tables, as "metric,filter"; None for the
    task's first. limit: only the first so many items of each task; None for all.
    """

    name: str
    task: str
    num_fewshot: int | None = None
    metric: str | None = None
    limit: int | None = None


TARGETED = (
    Benchmark("mmlu", "mmlu", 0, "acc,none"),
    # Answers after a chain of thought, as the scores that the paper reports for the base models are.
    Benchmark("bbh", "bbh", 3, "exact_match,get-answer"),
    Benchmark("gsm8k", "gsm8k", 8, "exact_match,strict-match"),
    Benchmark("humaneval", "humaneval", 0, "pass@1,create_test"),
)
UNTARGETED = (
    Benchmark("math", "hendrycks_math", 4, "exact_match,none"),
    Benchmark("mbpp", "mbpp", 3, "pass_at_1,none"),
    Benchmark("nq", "nq_open", 5, "exact_match,remove_whitespace"),
    Benchmark("triviaqa", "triviaqa", 5, "exact_match,remove_whitespace"),
    Benchmark("hellaswag", "hellaswag", 0, "acc_norm,none"),
    Benchmark("piqa", "piqa", 0, "acc_norm,none"),
    Benchmark("truthfulqa", "truthfulqa_mc2", 0, "acc,none"),
)
# The steps between the paper's GSM8K scores are those of 200 problems.
PAPER_LIMITS = {"gsm8k": 200}


def preset(name: Preset) -> list[Benchmark]:
    """All of the paper's benchmarks: "paper" in the paper's sizes, "full" with every item."""
    limits = PAPER_LIMITS if name == "paper" else {}
    return [replace(benchmark, limit=limits.get(benchmark.name)) for benchmark in (*TARGETED, *UNTARGETED)]


def select_benchmarks(names: Sequence[str], limit: int | None, num_fewshot: int | None = None) -> list[Benchmark]:
    """Benchmarks by name, in that order; a name that is not the paper's is an lm-eval task of its own.

    "paper" and "full" stand for the presets. limit, num_fewshot: instead of each benchmark's own, if given.
    Raises UserError where a name is given twice or a number cannot be.
    """
    for flag, value, least in (("--limit", limit, 1), ("--num-fewshot", num_fewshot, 0)):
        if value is not None and value < least:
            raise UserError(f"{flag}: {value} given; it must be at least {least}")
    known = {benchmark.name: benchmark for benchmark in preset("full")}
    chosen: list[Benchmark] = []
    for name in names:
        if name in ("paper", "full"):
            chosen += preset("paper" if name == "paper" else "full")
        else:
            chosen.append(known.get(name, Benchmark(name, name)))
    repeated = sorted({each.name for each in chosen if sum(other.name == each.name for other in chosen) > 1})
    if repeated:
        raise UserError(f"--tasks: {', '.join(repeated)} is listed more than once")
    if not chosen:
        raise UserError("--tasks: no task is named; give lm-eval tasks, or paper or full for the paper's")
    return [
        replace(
            each,
            limit=each.limit if limit is None else limit,
            num_fewshot=each.num_fewshot if num_fewshot is None else num_fewshot,
        )
        for each in chosen
    ]

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
_DRAW = ".draw"


def draw_name(benchmark: str, draw: int) -> str:
    """The name of a benchmark under another draw of its few-shot examples; draw 0 has the benchmark's own."""
    return f"{benchmark}{_DRAW}{draw + 1}" if draw else benchmark


def split_draw(name: str) -> tuple[str, int]:
    """The inverse of `draw_name`."""
    benchmark, _, number = name.partition(_DRAW)
    return benchmark, int(number) - 1 if number else 0


def preset(name: Preset) -> list[Benchmark]:
    """All of the paper's benchmarks: "paper" in the paper's sizes, "full" with every item."""
    limits = PAPER_LIMITS if name == "paper" else {}
    return [replace(benchmark, limit=limits.get(benchmark.name)) for benchmark in (*TARGETED, *UNTARGETED)]


def select_benchmarks(names: Sequence[str], limit: int | None, num_fewshot: int | None = None) -> list[Benchmark]:
    """Benchmarks by name, in that order; a name that is not the paper's is an lm-eval task of its own.

    "paper" and "full" stand for the presets; "<name>:<n>" is the first n items of each task of a benchmark.
    limit, num_fewshot: instead of each benchmark's own, if given; a limit of a name's own goes before.
    Raises UserError where a name is given twice or a number cannot be.
    """
    for flag, value, least in (("--limit", limit, 1), ("--num-fewshot", num_fewshot, 0)):
        if value is not None and value < least:
            raise UserError(f"{flag}: {value} given; it must be at least {least}")
    known = {benchmark.name: benchmark for benchmark in preset("full")}
    chosen: list[Benchmark] = []
    own_limits: dict[str, int] = {}
    for given in names:
        name, colon, own = given.partition(":")
        if name in ("paper", "full"):
            found = preset("paper" if name == "paper" else "full")
        else:
            found = [known.get(name, Benchmark(name, name))]
        if colon:
            own_limits |= dict.fromkeys((each.name for each in found), _limit(given, own))
        chosen += found
    repeated = sorted({each.name for each in chosen if sum(other.name == each.name for other in chosen) > 1})
    if repeated:
        raise UserError(f"--tasks: {', '.join(repeated)} is listed more than once")
    if not chosen:
        raise UserError("--tasks: no task is named; give lm-eval tasks, or paper or full for the paper's")
    return [
        replace(
            each,
            limit=own_limits.get(each.name, each.limit if limit is None else limit),
            num_fewshot=each.num_fewshot if num_fewshot is None else num_fewshot,
        )
        for each in chosen
    ]


def _limit(given: str, number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"--tasks: {given!r} limits a benchmark to {number!r} items; it must be a number above 0")
    return int(number)

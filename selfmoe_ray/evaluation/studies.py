"""The paper's tables and figures as evaluations of a run: which systems on which benchmarks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfmoe_ray.errors import UserError, did_you_mean
from selfmoe_ray.mixture.gate import top_gate
from selfmoe_ray.mixture.systems import (
    ALL,
    BASE,
    DATA,
    EXPERTS,
    FIRST,
    INSTANCE,
    JOINT,
    MERGES,
    MIXSE,
    OTHERS,
    RANDOM,
    SEEDS,
    TARGETS,
    expert_system,
)

# Studies of the whole run; fig4 compares runs with each other.
STUDIES = {
    "table1": "main results: base, each expert, merges, MiXSE",
    "table2": "the router: top-1, top-2, all experts, random, trained jointly",
    "table3": "generalisation and forgetting: benchmarks that no domain aims at",
    "table4": "number of experts, added in the config's order",
    "table8": "seeds only",
    "fig3": "where the tokens of each benchmark go",
    "fig4": "other base models",
    "fig5": "amount of synthetic data, for MiXSE and instance merging",
    "validity": "several draws of few-shot examples",
}
FIG4 = "fig4"


@dataclass(frozen=True)
class Evaluations:
    """Systems that are evaluated together on the same benchmarks with so many few-shot draws."""

    systems: tuple[str, ...]
    tasks: tuple[str, ...]
    draws: int = 1


def select_studies(names: Sequence[str]) -> list[str]:
    """Studies by name, each once, in the order of the table; "all" stands for all. Raises UserError."""
    for name in names:
        if name not in (*STUDIES, "all"):
            raise UserError(f"--study: no study {name!r}; {did_you_mean(name, [*STUDIES, 'all'], n=2)}")
    if not names:
        raise UserError(f"--study: none is named; there are {', '.join(STUDIES)}, all")
    return [name for name in STUDIES if "all" in names or name in names]


def plan_studies(
    names: Sequence[str], experts: Sequence[str], tasks: Sequence[str], draws: int, percents: Sequence[int]
) -> list[Evaluations]:
    """The evaluations that studies of one run need, those of equal benchmarks and draws as one.

    names: of `select_studies`. experts: the run's, in order. tasks: instead of the paper's, if any are given.
    draws: of validity. percents: of the synthetic data, for fig5 beside all of it.
    """
    systems: dict[tuple[tuple[str, ...], int], dict[str, None]] = {}
    for name in names:
        for one in _evaluations(name, experts, draws, percents):
            key = (tuple(tasks) or one.tasks, one.draws)
            systems.setdefault(key, {}).update(dict.fromkeys(one.systems))
    return [Evaluations(tuple(of_key), *key) for key, of_key in systems.items()]


def _evaluations(name: str, experts: Sequence[str], draws: int, percents: Sequence[int]) -> list[Evaluations]:
    few = (BASE, INSTANCE, MIXSE)
    if name == "table3":
        return [Evaluations(few, tuple(TARGETS)), Evaluations(few, OTHERS)]
    if name == "validity":
        return [Evaluations(few, tuple(TARGETS), draws)]
    counts = [f"{FIRST}{count}" for count in range(2, len(experts))]
    shares = [f"{kind}{percent}" for percent in percents for kind in (DATA, INSTANCE)]
    systems: dict[str, Sequence[str]] = {
        "table1": (BASE, EXPERTS, INSTANCE, *MERGES, MIXSE),
        "table2": (BASE, MIXSE, *([top_gate(2)] if len(experts) > 2 else []), ALL, RANDOM, JOINT),
        "table4": (BASE, expert_system(experts[0]), *counts, MIXSE),
        "table8": (BASE, SEEDS, MIXSE),
        "fig3": (MIXSE,),
        FIG4: (BASE, MIXSE),
        "fig5": (BASE, *shares, INSTANCE, MIXSE),
    }
    return [Evaluations(tuple(systems[name]), tuple(TARGETS))]

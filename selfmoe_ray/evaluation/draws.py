"""How far scores depend on the few-shot examples: several draws of them, their mean, spread and a test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfmoe_ray.evaluation.benchmarks import split_draw
from selfmoe_ray.evaluation.main_table import Evaluated
from selfmoe_ray.mixture.systems import MIXSE


@dataclass(frozen=True)
class DrawRow:
    """A system's mean score over the benchmarks, by draw. sd: over draws. mixse_minus, p: MiXSE's mean minus
    this one's and a paired t-test over draws, None for MiXSE and where every difference is the same."""

    system: str
    scores: tuple[float, ...]
    mean: float
    sd: float
    mixse_minus: float | None
    p: float | None


def draw_table(cells: Sequence[Evaluated]) -> list[DrawRow]:
    """A row for each system that was evaluated on every draw; [] where there is one draw only.

    A benchmark that draws make no difference to has its one score in each of them.
    """
    scores: dict[str, dict[tuple[str, int], float]] = {}
    for cell in cells:
        scores.setdefault(cell.system, {})[split_draw(cell.benchmark)] = cell.score["score"]
    wanted = {key for of_system in scores.values() for key in of_system}
    drawn = {benchmark for benchmark, draw in wanted if draw}
    draws = 1 + max((draw for _, draw in wanted), default=0)
    if draws == 1:
        return []
    benchmarks = sorted({benchmark for benchmark, _ in wanted})
    complete = {
        system: tuple(
            math.fsum(of_system[name, draw if name in drawn else 0] for name in benchmarks) / len(benchmarks)
            for draw in range(draws)
        )
        for system, of_system in scores.items()
        if wanted <= of_system.keys()
    }
    return [_row(system, complete) for system in complete]


def _row(system: str, complete: Mapping[str, tuple[float, ...]]) -> DrawRow:
    own, mixse = complete[system], complete.get(MIXSE)
    mean = math.fsum(own) / len(own)
    sd = math.sqrt(math.fsum((score - mean) ** 2 for score in own) / (len(own) - 1))
    if mixse is None or system == MIXSE:
        return DrawRow(system, own, mean, sd, None, None)
    difference = math.fsum(mixse) / len(mixse) - mean
    return DrawRow(system, own, mean, sd, difference, _paired_t_test(mixse, own))


def _paired_t_test(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Two-sided p-value of the differences' mean being zero."""
    from scipy.stats import ttest_rel

    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    if max(differences) - min(differences) < 1e-12:
        return None
    return float(ttest_rel(ours, theirs).pvalue)

"""MiXSE on several base models: what finished runs say, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfmoe_ray.evaluation.benchmarks import split_draw
from selfmoe_ray.evaluation.main_table import main_table, read_evaluated
from selfmoe_ray.mixture.systems import MIXSE
from selfmoe_ray.run.run_dir import RunDir


@dataclass(frozen=True)
class BaseRow:
    """One base model on one benchmark, alone and as MiXSE. difference: MiXSE minus base, with its 95% interval."""

    base_model: str
    benchmark: str
    n: int
    base: float
    mixse: float
    difference: float
    low: float
    high: float


def compare_bases(runs: Sequence[tuple[str, RunDir]], seed: int) -> list[BaseRow]:
    """A row for each benchmark that both systems of a run were evaluated on; runs: by their base models."""
    rows = []
    for base_model, run_dir in runs:
        cells = [cell for cell in read_evaluated(run_dir, []) if not split_draw(cell.benchmark)[1]]
        for row in main_table(cells, seed):
            if row.system == MIXSE and row.difference is not None:
                assert row.difference_low is not None and row.difference_high is not None
                base = row.score - row.difference
                interval = (row.difference_low, row.difference_high)
                rows.append(BaseRow(base_model, row.benchmark, row.n, base, row.score, row.difference, *interval))
    return rows

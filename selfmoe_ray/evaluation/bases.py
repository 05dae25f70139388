"""MiXSE on several base models: what finished runs say, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from selfmoe_ray.evaluation.benchmarks import split_draw
from selfmoe_ray.evaluation.main_table import main_table, read_evaluated
from selfmoe_ray.mixture.systems import MIXSE
from selfmoe_ray.run.run_dir import RunDir

BASES = "eval/bases.json"


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


def write_bases(run_dir: RunDir, rows: Sequence[BaseRow]) -> str:
    """Keep the rows in a run for its report; returns them as text, scores in percent."""
    run_dir.storage.write_json(BASES, [asdict(row) for row in rows])
    return "\n".join(
        f"{row.base_model} {row.benchmark}: base {100 * row.base:.1f}, MiXSE {100 * row.mixse:.1f}, "
        f"difference {100 * row.difference:+.1f} ({100 * row.low:+.1f} .. {100 * row.high:+.1f}), n {row.n}"
        for row in rows
    )

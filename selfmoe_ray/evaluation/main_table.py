"""The main table: every finished system on every benchmark, with its distance to the base."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from selfmoe_ray.evaluation import statistics
from selfmoe_ray.evaluation.harness import item_id
from selfmoe_ray.evaluation.statistics import Comparison, compare, holm
from selfmoe_ray.mixture.systems import BASE
from selfmoe_ray.run.run_dir import RunDir


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation; values: the metric of each item by its id, where it is a plain number."""

    system: str
    benchmark: str
    metric: str
    score: Mapping[str, Any]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """A line of the table. low, high: 95%; what follows compares with the base on the same items, and is
    None where the base was not evaluated on them. p_holm: corrected for all comparisons of the table."""

    benchmark: str
    system: str
    metric: str
    n: int
    score: float
    standard_error: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    test: str | None = None


def read_evaluated(
    run_dir: RunDir, system_order: Sequence[str], without: Mapping[str, Collection[str]] | None = None
) -> list[Evaluated]:
    """Every finished evaluation of a run: benchmarks by name, systems in the order given, others last.

    without: by benchmark, ids of items that do not count. A score that is no mean of its items' values
    cannot be had without some of them, and is left out then.
    """
    folders = [each for system in run_dir.storage.list_folders("eval") for each in run_dir.storage.list_folders(system)]
    found = [_read_one(run_dir, folder) for folder in folders if run_dir.read_manifest(folder)]
    cells = [kept for cell in found if (kept := _leave_out(cell, (without or {}).get(cell.benchmark, ())))]
    rank = {system: place for place, system in enumerate(system_order)}
    return sorted(cells, key=lambda cell: (cell.benchmark, rank.get(cell.system, len(rank)), cell.system))


def _read_one(run_dir: RunDir, folder: str) -> Evaluated:
    _, system, benchmark = folder.split("/")
    summary = run_dir.storage.read_json(f"{folder}/scores.json")
    metric = summary["metric"]
    samples = run_dir.storage.read_jsonl(f"{folder}/samples.jsonl")
    found = {item_id(sample["task"], sample["doc_id"]): sample["metrics"].get(metric) for sample in samples}
    values = {item: float(value) for item, value in found.items() if isinstance(value, int | float)}
    return Evaluated(system, benchmark, metric, summary["metrics"][metric], values)


def _leave_out(cell: Evaluated, items: Collection[str]) -> Evaluated | None:
    kept = {item: value for item, value in cell.values.items() if item not in items}
    if len(kept) == len(cell.values):
        return cell
    whole = statistics.mean(list(cell.values.values())).mean
    if not kept or len(cell.values) != cell.score["n"] or not math.isclose(whole, cell.score["score"], abs_tol=1e-9):
        return None
    score = asdict(statistics.score(list(kept.values())))
    return replace(cell, score={"score": score.pop("mean"), **score}, values=kept)


def main_table(cells: Sequence[Evaluated], seed: int) -> list[Row]:
    """The table's rows in the cells' order; seed: of the bootstrap."""
    bases = {cell.benchmark: cell for cell in cells if cell.system == BASE}
    compared = {place: found for place, cell in enumerate(cells) if (found := _compare(cell, bases, seed))}
    corrected = holm([comparison.p_value for comparison in compared.values()])
    p_holm = dict(zip(compared, corrected, strict=True))
    return [_row(cell, compared.get(place), p_holm.get(place)) for place, cell in enumerate(cells)]


def _compare(cell: Evaluated, bases: Mapping[str, Evaluated], seed: int) -> Comparison | None:
    base = bases.get(cell.benchmark)
    if base is None or cell.system == BASE or cell.metric != base.metric:
        return None
    same_items = cell.values.keys() == base.values.keys() and len(cell.values) == cell.score["n"]
    return compare(cell.values, base.values, seed) if same_items and cell.values else None


def _row(cell: Evaluated, against_base: Comparison | None, p_holm: float | None) -> Row:
    low, high = cell.score["interval"] or (None, None)
    start = (cell.benchmark, cell.system, cell.metric, cell.score["n"], cell.score["score"])
    alone = (*start, cell.score["standard_error"], low, high)
    if against_base is None:
        return Row(*alone)
    found = against_base
    return Row(*alone, found.difference, *found.interval, found.p_value, p_holm, found.test)

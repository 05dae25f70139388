"""The report's part on benchmarks: tables and figures of what `jobs/eval.py` and `jobs/studies.py` found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from selfmoe_ray.mixture.systems import (
    BASE,
    DATA,
    FIRST,
    INSTANCE,
    MIXSE,
    OTHERS,
    SEEDS,
    TARGETS,
    expert_system,
    is_routing,
    split_number,
    system_title,
)
from selfmoe_ray.reporting import figures
from selfmoe_ray.reporting.collect import RunFacts
from selfmoe_ray.reporting.paper import PAPER_BASE, paper_score
from selfmoe_ray.reporting.table import INTERVAL, Cell, Column, Table, Value, best

Row = dict[str, Any]
_SHOWN = "in percent with 95% intervals; the best of a column is bold, n is the number of items"


def benchmark_parts(facts: RunFacts) -> dict[str, Any]:
    """What the page's template shows by name; None or empty where there is nothing to show."""
    found = facts.evaluation or {}
    rows: list[Row] = found.get("rows", [])
    scores = {(row["system"], row["benchmark"]): row for row in rows}
    return {
        "benchmark_table": score_table("benchmarks", f"Scores {_SHOWN}", rows),
        "gains_table": gains(rows),
        "ablation_table": score_table(
            "ablations", f"The router and its alternatives, {_SHOWN}", _beside_ours(rows, is_routing)
        ),
        "forgetting_table": forgetting(scores),
        "seeds_table": score_table(
            "seeds", f"Trained on seeds only, {_SHOWN}", _beside_ours(rows, lambda system: system == SEEDS)
        ),
        **scaling(scores, facts),
        "draws_table": draws(found.get("draws", [])),
        "bases_table": bases(facts.bases),
        "leaked_table": leaked(facts, rows),
        **benchmark_routing(facts),
    }


def _beside_ours(rows: Sequence[Row], is_shown: Callable[[str], bool]) -> list[Row]:
    """The rows of some systems, with those of the base and of MiXSE; [] where there is none of them."""
    shown = [row for row in rows if row["system"] in (BASE, MIXSE) or is_shown(row["system"])]
    return shown if any(is_shown(row["system"]) for row in shown) else []


def ordered(benchmarks: set[str]) -> list[str]:
    """The paper's targets, its other benchmarks, then all else by name."""
    known = [name for name in (*TARGETS, *OTHERS) if name in benchmarks]
    return [*known, *sorted(benchmarks - set(known))]


def score_table(name: str, caption: str, rows: Sequence[Row]) -> Table | None:
    """Systems by benchmarks with the mean over them; each benchmark's own expert and every best are marked."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    benchmarks = ordered({row["benchmark"] for row in rows})
    if not systems:
        return None
    of_cell = {(row["system"], row["benchmark"]): row for row in rows}
    cells: list[list[Cell]] = []
    for system in systems:
        own = [of_cell[system, benchmark] for benchmark in benchmarks if (system, benchmark) in of_cell]
        mean = math.fsum(row["score"] for row in own) / len(own) if len(own) == len(benchmarks) else None
        cells.append([system_title(system), *(_scored(of_cell.get((system, name))) for name in benchmarks), mean])
    columns = [
        Column("system"),
        *(Column(each, "score", (*INTERVAL, "n"), _items(rows, each)) for each in benchmarks),
        Column("mean", "score"),
    ]
    aligned = {
        (systems.index(expert_system(TARGETS[benchmark])), place)
        for place, benchmark in enumerate(benchmarks, start=1)
        if benchmark in TARGETS and expert_system(TARGETS[benchmark]) in systems
    }
    return Table(name, caption, columns, cells, best(cells, range(1, len(columns))), aligned=frozenset(aligned))


def _scored(row: Row | None) -> Cell:
    return (row["score"], row["low"], row["high"], row["n"]) if row else None


def _items(rows: Sequence[Row], benchmark: str) -> str:
    """How many items a benchmark has, for its heading; from least to most where systems differ."""
    counts = {row["n"] for row in rows if row["benchmark"] == benchmark}
    return "n " + " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def main_results(rows: Sequence[Row]) -> Table:
    """Every score with its interval and its distance to the base, systems by their names on the command line."""
    columns = [Column("benchmark"), Column("system"), *_COMPARED]
    cells: list[list[Cell]] = [[row["benchmark"], row["system"], *_compared(row)] for row in rows]
    return Table("main", "Scores in percent", columns, cells, grouped=True)


_COMPARED = (
    Column("n", "integer"),
    Column("score", "score", INTERVAL),
    Column("± s.e.", "score"),
    Column("minus base", "points", INTERVAL),
    Column("p", "decimal"),
    Column("p (Holm)", "decimal"),
)


def _compared(row: Row) -> list[Cell]:
    score = (row["score"], row["low"], row["high"])
    return [row["n"], score, row["standard_error"], _difference(row), row["p"], row["p_holm"]]


def _difference(row: Row) -> Cell:
    return row["difference"], row["difference_low"], row["difference_high"]


def gains(rows: Sequence[Row]) -> Table | None:
    """The main results, and what the paper has for them."""
    cells: list[list[Cell]] = []
    for row in rows:
        paper, paper_base = paper_score(row["system"], row["benchmark"]), paper_score(BASE, row["benchmark"])
        paper_gain = paper - paper_base if paper is not None and paper_base is not None else None
        own = None if row["system"] == BASE else paper_gain
        cells.append([row["benchmark"], system_title(row["system"]), *_compared(row), paper, own])
    columns = [
        Column("benchmark"),
        Column("system"),
        *_COMPARED,
        Column(f"the paper's, {PAPER_BASE}", "score"),
        Column(f"the paper's minus base, {PAPER_BASE}", "points"),
    ]
    caption = "Scores in percent and distances to the base on the same items in points, with 95% intervals"
    return Table("gains", caption, columns, cells, grouped=True) if cells else None


def forgetting(scores: dict[tuple[str, str], Row]) -> Table | None:
    """Benchmarks that no domain aims at: base, instance merging and MiXSE."""
    systems = (BASE, INSTANCE, MIXSE)
    cells: list[list[Cell]] = [
        [name, *(_scored(scores.get((system, name))) for system in systems), _difference(scores[MIXSE, name])]
        for name in ordered({name for _, name in scores})
        if name not in TARGETS and (BASE, name) in scores and (MIXSE, name) in scores
    ]
    columns = [
        Column("benchmark"),
        *(Column(system_title(name), "score", (*INTERVAL, "n")) for name in systems),
        Column("MiXSE minus base", "points", INTERVAL),
    ]
    caption = "Benchmarks that no domain of the paper aims at, in percent with 95% intervals"
    return Table("forgetting", caption, columns, cells) if cells else None


def scaling(scores: dict[tuple[str, str], Row], facts: RunFacts) -> dict[str, Any]:
    """Mean scores by the number of experts and by the share of synthetic data, over what all of them have."""
    ours, merged = system_title(MIXSE), system_title(INSTANCE)
    first = expert_system(facts.config.domains[0])
    last = len(facts.config.domains)
    experts: dict[str, tuple[str, float]] = {BASE: (ours, 0), first: (ours, 1), MIXSE: (ours, last)}
    data: dict[str, tuple[str, float]] = {MIXSE: (ours, 100), INSTANCE: (merged, 100)}
    for system in {system for system, _ in scores}:
        kind, number = split_number(system) or ("", 0)
        if kind == FIRST:
            experts[system] = (ours, number)
        elif kind in (DATA, INSTANCE):
            data[system] = (ours if kind == DATA else merged, number)
    found: dict[str, Any] = {}
    for name, points, least in (("experts", experts, 4), ("data", data, 3)):
        lines = _mean_scores(scores, points) if len(points) >= least else {}
        title = {"experts": "experts", "data": "synthetic data (%)"}[name]
        figure = figures.line_chart(lines, f"Mean score by {title}", title, "mean score (%)")
        cells: list[list[Value]] = [[line, x, y / 100] for line, of_line in lines.items() for x, y in of_line]
        columns = [Column("system"), Column(title, "integer"), Column("mean score", "score")]
        found[f"{name}_figure"] = figure
        found[f"{name}_legend"] = figures.legend(list(lines), "line")
        found[f"{name}_table"] = (
            Table(f"scaling_{name}", f"Mean score in percent by {title}", columns, cells) if cells else None
        )
    return found


def _mean_scores(
    scores: dict[tuple[str, str], Row], points: dict[str, tuple[str, float]]
) -> dict[str, list[figures.Point]]:
    """Lines of (x, mean score in percent) over the benchmarks that every point has."""
    evaluated = {system for system, _ in scores} & points.keys()
    benchmarks = [
        name for name in {name for _, name in scores} if all((system, name) in scores for system in evaluated)
    ]
    lines: dict[str, list[figures.Point]] = {}
    for system in sorted(evaluated, key=lambda system: points[system][1]) if benchmarks else []:
        line, x = points[system]
        mean = math.fsum(scores[system, name]["score"] for name in benchmarks) / len(benchmarks)
        lines.setdefault(line, []).append((x, 100 * mean))
    return lines


def draws(rows: Sequence[Row], title: Callable[[str], str] = system_title) -> Table | None:
    """Means over benchmarks under several draws of the few-shot examples; title: of a system."""
    cells: list[list[Value]] = [
        [title(row["system"]), *row["scores"], row["mean"], row["sd"], row["mixse_minus"], row["p"]] for row in rows
    ]
    numbers = range(1, len(rows[0]["scores"]) + 1) if rows else ()
    columns = [
        Column("system"),
        *(Column(f"draw {number}", "score") for number in numbers),
        Column("mean", "score"),
        Column("SD", "spread"),
        Column("MiXSE minus it", "points"),
        Column("p (paired t)", "decimal"),
    ]
    caption = "Mean over benchmarks in percent, by draw of the few-shot examples"
    return Table("draws", caption, columns, cells) if rows else None


def bases(rows: Sequence[Row]) -> Table | None:
    """Base models side by side."""
    cells: list[list[Cell]] = [
        [
            *(row[key] for key in ("base_model", "benchmark", "n", "base", "mixse")),
            (row["difference"], row["low"], row["high"]),
        ]
        for row in rows
    ]
    columns = [
        Column("base model"),
        Column("benchmark"),
        Column("n", "integer"),
        Column("base", "score"),
        Column("MiXSE", "score"),
        Column("difference", "points", INTERVAL),
    ]
    return Table("bases", "Other base models, in percent", columns, cells) if rows else None


def leaked(facts: RunFacts, rows: Sequence[Row]) -> Table | None:
    """Items that the generated examples hold, and MiXSE's distance to the base with and without them."""
    without = {(row["system"], row["benchmark"]): row for row in (facts.evaluation or {}).get("without_leaked", [])}
    cells: list[list[Value]] = []
    for row in rows:
        if row["system"] == MIXSE:
            rest = without.get((MIXSE, row["benchmark"]), {})
            items = len(facts.leaked.get(row["benchmark"], []))
            cells.append([row["benchmark"], items, row["n"], row["difference"], rest.get("difference")])
    columns = [
        Column("benchmark"),
        Column("leaked items", "integer"),
        Column("items", "integer"),
        Column("MiXSE minus base", "points"),
        Column("the same without them", "points"),
    ]
    caption = "Items of which 13 successive words, or all, stand in a generated example"
    return Table("leaked", caption, columns, cells) if cells else None


def benchmark_routing(facts: RunFacts) -> dict[str, Any]:
    """Heat maps of where MiXSE sends the tokens of each benchmark: over all layers, and by layer."""
    traced = facts.benchmark_routing
    names = ordered(set(traced))
    experts = traced[names[0]]["experts"] if names else []
    cells: list[list[Value]] = [
        [name, traced[name]["items"], traced[name]["tokens"], *traced[name]["top1_share"], *traced[name]["mean_gate"]]
        for name in names
    ]
    columns = [
        Column("benchmark"),
        Column("items", "integer"),
        Column("tokens", "integer"),
        *(Column(f"top-1 share {expert}", "percent") for expert in experts),
        *(Column(f"mean gate {expert}", "decimal") for expert in experts),
    ]
    caption = "Top-1 share and mean gate of each expert, over tokens and layers"
    return {
        "benchmark_experts": experts,
        "benchmark_shares": {name: traced[name]["top1_share"] for name in names},
        "benchmark_layer_figures": {
            name: figures.layer_heat_map(traced[name]["layers"]["top1_share"], experts, f"Routing by layer, {name}")
            for name in names
        },
        "benchmark_routing_table": Table("routing_benchmarks", caption, columns, cells) if names else None,
    }

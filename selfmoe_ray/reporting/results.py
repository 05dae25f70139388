"""What finished evaluations of a run come to: tables for the terminal, for files and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from selfmoe_ray.config import RunConfig
from selfmoe_ray.evaluation.benchmarks import split_draw
from selfmoe_ray.evaluation.draws import DrawRow, draw_table
from selfmoe_ray.evaluation.main_table import main_table, read_evaluated, to_csv, to_text
from selfmoe_ray.evaluation.preparation import read_leaked
from selfmoe_ray.run.run_dir import RunDir

# What the report is made of: the main table's rows, with and without leaked items, and the draw table's.
RESULTS = "eval/results.json"


def write_results(run_dir: RunDir, config: RunConfig, system_order: Sequence[str], exclude_leaked: bool) -> str:
    """Write the tables and the report of all finished evaluations; returns the main table as text.

    exclude_leaked: the text is of the scores without the items in `eval/leaked.json`; files have both.
    """
    from selfmoe_ray.reporting.page import write_report

    cells = read_evaluated(run_dir, system_order)
    draws = draw_table(cells)
    tables = {"main": cells, "main_without_leaked": read_evaluated(run_dir, system_order, read_leaked(run_dir))}
    rows = {
        name: main_table([cell for cell in of_table if not split_draw(cell.benchmark)[1]], config.seed)
        for name, of_table in tables.items()
    }
    for name, of_table in rows.items():
        run_dir.storage.write_bytes(f"{run_dir.REPORT}/tables/{name}.csv", to_csv(of_table).encode())
    run_dir.storage.write_json(
        RESULTS,
        {
            "mixture": run_dir.manifest_hash(run_dir.MIXSE),
            "rows": [asdict(row) for row in rows["main"]],
            "without_leaked": [asdict(row) for row in rows["main_without_leaked"]],
            "draws": [asdict(row) for row in draws],
        },
    )
    page = write_report(config, run_dir)
    shown = rows["main_without_leaked" if exclude_leaked else "main"]
    note = "Scores in percent" + (", without leaked items" if exclude_leaked else "")
    parts = [to_text(shown), _draws_text(draws), f"{note}. Report: {page}"]
    return "\n" + "\n\n".join(part for part in parts if part)


def _draws_text(rows: Sequence[DrawRow]) -> str:
    """Means over benchmarks and draws for a terminal, in percent."""
    lines = []
    for row in rows:
        against = "" if row.mixse_minus is None else f"  MiXSE minus it {100 * row.mixse_minus:+.1f}"
        p = "" if row.p is None else f" (p {row.p:.3f})"
        lines.append(
            f"{row.system}: {100 * row.mean:.1f}, SD {100 * row.sd:.2f} over {len(row.scores)} draws{against}{p}"
        )
    return "\n".join(lines)

"""What finished evaluations of a run come to: tables for the terminal, for files and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

from selfmoe_ray.config import RunConfig
from selfmoe_ray.evaluation.bases import BaseRow
from selfmoe_ray.evaluation.benchmarks import split_draw
from selfmoe_ray.evaluation.draws import draw_table
from selfmoe_ray.evaluation.main_table import Row, main_table, read_evaluated
from selfmoe_ray.evaluation.preparation import read_leaked
from selfmoe_ray.reporting.benchmark_tables import bases, draws, main_results
from selfmoe_ray.reporting.table import Column, Table
from selfmoe_ray.run.run_dir import RunDir

# What the report is made of: the main table's rows, with and without leaked items, and the draw table's.
RESULTS = "eval/results.json"
BASES = "eval/bases.json"


def write_results(run_dir: RunDir, config: RunConfig, system_order: Sequence[str], exclude_leaked: bool) -> str:
    """Write the tables and the report of all finished evaluations; returns the main table as text.

    exclude_leaked: the text is of the scores without the items in `eval/leaked.json`; files have both.
    """
    from selfmoe_ray.reporting.page import write_report

    cells = read_evaluated(run_dir, system_order)
    drawn = [asdict(row) for row in draw_table(cells)]
    evaluated = {"main": cells, "main_without_leaked": read_evaluated(run_dir, system_order, read_leaked(run_dir))}
    rows = {
        name: [
            asdict(row)
            for row in main_table([cell for cell in of_table if not split_draw(cell.benchmark)[1]], config.seed)
        ]
        for name, of_table in evaluated.items()
    }
    names = [field.name for field in fields(Row)]
    for name, of_table in rows.items():
        table = Table(name, "", list(map(Column, names)), [[row[key] for key in names] for row in of_table])
        run_dir.storage.write_bytes(f"{run_dir.REPORT}/tables/{name}.csv", table.to_csv().encode())
    run_dir.storage.write_json(
        RESULTS,
        {
            "mixture": run_dir.manifest_hash(run_dir.MIXSE),
            "rows": rows["main"],
            "without_leaked": rows["main_without_leaked"],
            "draws": drawn,
        },
    )
    page = write_report(config, run_dir)
    shown = rows["main_without_leaked" if exclude_leaked else "main"]
    note = "Scores in percent" + (", without leaked items" if exclude_leaked else "")
    parts = [_text(main_results(shown)), _text(draws(drawn, str)), f"{note}. Report: {page}"]
    return "\n" + "\n\n".join(part for part in parts if part)


def write_bases(run_dir: RunDir, config: RunConfig, rows: Sequence[BaseRow]) -> str:
    """Keep other base models beside a run's in its report; returns their table as text."""
    from selfmoe_ray.reporting.page import write_report

    records = [asdict(row) for row in rows]
    run_dir.storage.write_json(BASES, records)
    write_report(config, run_dir)
    return _text(bases(records))


def _text(table: Table | None) -> str:
    return table.to_text() if table else ""

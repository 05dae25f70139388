"""What `jobs/eval.py` and `jobs/studies.py` print and leave in `report/tables`."""

from __future__ import annotations

import csv
import io
from dataclasses import fields
from typing import Any

import pytest

from selfmoe_ray.config import RunConfig
from selfmoe_ray.evaluation.bases import BaseRow
from selfmoe_ray.evaluation.main_table import Row
from selfmoe_ray.evaluation.statistics import score
from selfmoe_ray.reporting.results import write_bases, write_results
from selfmoe_ray.run.run_dir import RunDir


def write(run_dir: RunDir, system: str, benchmark: str, values: list[float]) -> None:
    folder = run_dir.evaluation(system, benchmark)
    found: dict[str, Any] = vars(score(values))
    summary = {"score": found["mean"], **{key: found[key] for key in ("n", "standard_error", "interval")}}
    run_dir.storage.write_json(f"{folder}/scores.json", {"metric": "acc", "metrics": {"acc": summary}})
    rows = [{"task": benchmark, "doc_id": item, "metrics": {"acc": value}} for item, value in enumerate(values)]
    run_dir.storage.write_jsonl(f"{folder}/samples.jsonl", rows)
    run_dir.write_manifest(folder, {}, {}, {}, 1.0)


@pytest.fixture
def evaluated(finished: RunDir) -> RunDir:
    write(finished, "base", "gsm8k", [1.0, 0.0, 0.0])
    write(finished, "mixse", "gsm8k", [1.0, 1.0, 0.0])
    write(finished, "mixse", "piqa", [1.0, 0.0])
    return finished


def test_the_terminal_shows_percent_and_the_csv_whole_numbers(config: RunConfig, evaluated: RunDir) -> None:
    text = write_results(evaluated, config, ["base", "mixse"], exclude_leaked=False)
    header, base, mixse, gap, piqa = text.strip().splitlines()[:5]
    assert header.split()[:4] == ["benchmark", "system", "n", "score"]
    assert base.split()[:4] == ["gsm8k", "base", "3", "33.3"] and "+33.3" in mixse
    assert gap == "" and piqa.split()[:4] == ["piqa", "mixse", "2", "50.0"]
    assert "\n\nScores in percent. Report: " in text and text.endswith("report/index.html")
    read = csv.DictReader(io.StringIO(evaluated.storage.read_bytes("report/tables/main.csv").decode()))
    rows = list(read)
    assert read.fieldnames == [field.name for field in fields(Row)]
    assert float(rows[1]["score"]) == 2 / 3 and rows[0]["difference"] == ""


def test_draws_are_printed_by_system(config: RunConfig, evaluated: RunDir) -> None:
    for system, values in (("base", [1.0, 1.0, 0.0]), ("mixse", [1.0, 1.0, 1.0])):
        write(evaluated, system, "gsm8k.draw2", values)
        write(evaluated, system, "piqa", [1.0, 0.0])
    text = write_results(evaluated, config, ["base", "mixse"], exclude_leaked=False)
    (base,) = (line for line in text.splitlines() if line.split()[:3] == ["base", "41.7", "58.3"])
    # Means 41.67 and 58.33: their standard deviation is 16.67 / sqrt(2).
    assert base.split()[3:] == ["50.0", "11.79", "+16.7"]


def test_bases_are_kept_printed_and_in_the_report(config: RunConfig, evaluated: RunDir) -> None:
    write_results(evaluated, config, [], exclude_leaked=False)
    text = write_bases(evaluated, config, [BaseRow("other", "gsm8k", 10, 0.1, 0.3, 0.2, -0.1, 0.3)])
    assert text.splitlines()[1].split() == ["other", "gsm8k", "10", "10.0", "30.0", "+20.0", "-10.0", "..", "+30.0"]
    assert 'data-name="bases"' in evaluated.storage.read_bytes("report/index.html").decode()
    assert write_bases(evaluated, config, []) == ""

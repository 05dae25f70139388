"""The main table from what evaluations left in a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.evaluation.main_table import main_table, read_evaluated
from selfmoe_ray.evaluation.statistics import score
from selfmoe_ray.run.run_dir import RunDir

ORDER = ["base", "expert-math", "mixse"]


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path), "run")


def write(run_dir: RunDir, system: str, benchmark: str, values: list[float], **manifest: Any) -> None:
    folder = run_dir.evaluation(system, benchmark)
    found = vars(score(values))
    summary = {"score": found["mean"], "n": found["n"], **{k: found[k] for k in ("standard_error", "interval")}}
    run_dir.storage.write_json(f"{folder}/scores.json", {"metric": "acc,none", "metrics": {"acc,none": summary}})
    rows = [{"task": benchmark, "doc_id": row, "metrics": {"acc,none": value}} for row, value in enumerate(values)]
    run_dir.storage.write_jsonl(f"{folder}/samples.jsonl", rows)
    run_dir.write_manifest(folder, {}, {}, {}, 1.0)


def test_systems_are_compared_with_the_base_on_the_same_items(run_dir: RunDir) -> None:
    write(run_dir, "mixse", "gsm8k", [1.0] * 12)
    write(run_dir, "base", "gsm8k", [1.0] * 4 + [0.0] * 8)
    write(run_dir, "expert-math", "gsm8k", [0.0] + [1.0] * 4 + [0.0] * 7)
    write(run_dir, "base", "piqa", [1.0, 0.0])
    write(run_dir, "mixse", "piqa", [1.0, 0.0, 1.0])
    rows = main_table(read_evaluated(run_dir, ORDER), seed=0)
    assert [(row.benchmark, row.system) for row in rows] == [
        *(("gsm8k", system) for system in ORDER),
        ("piqa", "base"),
        ("piqa", "mixse"),
    ]
    base, expert, mixse, _, other_items = rows
    assert base.difference is None and base.score == pytest.approx(1 / 3) and base.n == 12
    assert mixse.difference == pytest.approx(2 / 3) and mixse.p == pytest.approx(2 / 2**8) and mixse.test == "McNemar"
    assert mixse.p_holm == pytest.approx(2 * 2 / 2**8)
    assert expert.difference == pytest.approx(0) and expert.p_holm == 1.0
    assert other_items.difference is None and other_items.p_holm is None


def test_an_unfinished_evaluation_is_left_out(run_dir: RunDir) -> None:
    write(run_dir, "base", "gsm8k", [1.0, 0.0])
    write(run_dir, "mixse", "gsm8k", [1.0, 0.0])
    run_dir.storage.delete("eval/mixse/gsm8k/manifest.json")
    assert [cell.system for cell in read_evaluated(run_dir, ORDER)] == ["base"]


def test_items_are_left_out_of_scores_and_comparisons(run_dir: RunDir) -> None:
    write(run_dir, "base", "gsm8k", [1.0, 0.0, 0.0, 1.0])
    write(run_dir, "mixse", "gsm8k", [1.0, 1.0, 0.0, 1.0])
    cells = read_evaluated(run_dir, ORDER, {"gsm8k": {"gsm8k/0", "gsm8k/1", "other/2"}, "piqa": {"piqa/0"}})
    base, mixse = main_table(cells, seed=0)
    assert (base.n, base.score, mixse.difference) == (2, 0.5, 0.0)
    assert read_evaluated(run_dir, ORDER, {"gsm8k": {f"gsm8k/{row}" for row in range(4)}}) == []


def test_a_score_that_is_no_mean_cannot_lose_items(run_dir: RunDir) -> None:
    write(run_dir, "base", "f1", [1.0, 0.0])
    scores = run_dir.storage.read_json("eval/base/f1/scores.json")
    scores["metrics"]["acc,none"]["score"] = 0.7
    run_dir.storage.write_json("eval/base/f1/scores.json", scores)
    assert len(read_evaluated(run_dir, ORDER, {"f1": set()})) == 1
    assert read_evaluated(run_dir, ORDER, {"f1": {"f1/0"}}) == []

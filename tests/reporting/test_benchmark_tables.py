"""The report's part on benchmarks, from what evaluations leave in a run."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from selfmoe_ray.config import RunConfig
from selfmoe_ray.reporting.benchmark_tables import score_table
from selfmoe_ray.reporting.page import write_report
from selfmoe_ray.reporting.paper import TARGETS, paper_score
from selfmoe_ray.run.run_dir import RunDir

SCORES = {
    "base": (0.3, 0.5),
    "expert-math": (0.5, 0.4),
    "expert-coding": (0.2, 0.6),
    "instance50": (0.3, 0.5),
    "instance": (0.4, 0.5),
    "random": (0.3, 0.4),
    "data50": (0.4, 0.6),
    "mixse": (0.5, 0.6),
}


def row(system: str, benchmark: str, score: float, base: float) -> dict[str, Any]:
    compared = None if system == "base" else score - base
    keys = ("difference", "difference_low", "difference_high", "p", "p_holm")
    found = dict.fromkeys(keys, compared) | {"test": None if compared is None else "McNemar"}
    scored = {"n": 10, "score": score, "standard_error": 0.1, "low": score - 0.1, "high": score + 0.1}
    return {"benchmark": benchmark, "system": system, "metric": "acc,none", **scored, **found}


def rows(change: float = 0.0) -> list[dict[str, Any]]:
    return [
        row(system, benchmark, scores[place] + change, SCORES["base"][place])
        for place, benchmark in enumerate(("gsm8k", "piqa"))
        for system, scores in SCORES.items()
    ]


@pytest.fixture
def evaluated(finished: RunDir) -> RunDir:
    draws = [
        {"system": "base", "scores": [0.4, 0.5], "mean": 0.45, "sd": 0.07, "mixse_minus": 0.1, "p": 0.02},
        {"system": "mixse", "scores": [0.5, 0.6], "mean": 0.55, "sd": 0.07, "mixse_minus": None, "p": None},
    ]
    shares = {"items": 8, "tokens": 100, "top1_share": [0.9, 0.1], "mean_gate": [0.8, 0.1]}
    layers = {"top1_share": [[0.9, 0.1]] * 3, "mean_gate": [[0.8, 0.1]] * 3}
    of_base = {"base_model": "other", "benchmark": "gsm8k", "n": 10, "base": 0.1, "mixse": 0.3}
    storage = finished.storage
    mixture = finished.manifest_hash(finished.MIXSE)
    storage.write_json(
        "eval/results.json", {"mixture": mixture, "rows": rows(), "without_leaked": rows(-0.1), "draws": draws}
    )
    storage.write_json("eval/leaked.json", {"gsm8k": [{"item": "gsm8k/1"}], "piqa": []})
    storage.write_json("eval/routing.json", {"gsm8k": {"experts": ["math", "coding"], **shares, "layers": layers}})
    storage.write_json("eval/bases.json", [{**of_base, "difference": 0.2, "low": 0.1, "high": 0.3}])
    finished.write_manifest("eval/base/gsm8k", {}, {}, {}, 5.0)
    finished.write_manifest("variants/joint/router", {"jointly": True}, {}, {}, 7.0)
    finished.write_manifest("variants/joint/experts/math", {"jointly": True}, {}, {}, 7.0)
    finished.write_manifest("variants/data50/experts/math", {}, {}, {}, 20.0)
    finished.write_manifest("variants/data50/router", {}, {}, {}, 3.0)
    return finished


@pytest.fixture
def html(config: RunConfig, evaluated: RunDir) -> str:
    write_report(config, evaluated)
    return evaluated.storage.read_bytes("report/index.html").decode()


def table(run_dir: RunDir, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run_dir.storage.read_bytes(f"report/tables/{name}.csv").decode())))


def test_the_best_and_the_aligned_scores_are_marked(html: str) -> None:
    start = html.index('data-name="benchmarks"')
    of_table = html[start : html.index("</table>", start)].replace("\n", "")
    cell = '<td class="number"><strong><u>50.0</u></strong><small>40.0 .. 60.0</small></td>'
    assert f'<th scope="row">expert math</th>{cell}' in of_table
    assert of_table.count("<u>") == 1 and of_table.count("<strong>") == 2 + 3 + 1


def test_scores_have_their_intervals_and_numbers_of_items(html: str, evaluated: RunDir) -> None:
    assert '<th scope="col" class="number">gsm8k<small>n 10</small></th>' in html
    expert = next(row for row in table(evaluated, "benchmarks") if row["system"] == "expert math")
    found = [float(expert[f"gsm8k{part}"]) for part in ("", " low", " high", " n")]
    assert found == pytest.approx([0.5, 0.4, 0.6, 10])


def test_a_heading_says_where_systems_differ_in_their_items() -> None:
    shown = [row("base", "gsm8k", 0.3, 0.3), {**row("mixse", "gsm8k", 0.5, 0.3), "n": 1319}, row("mixse", "piqa", 1, 1)]
    made = score_table("benchmarks", "", shown)
    assert made and [column.note for column in made.columns] == ["", "n 10 to 1,319", "n 10", ""]
    assert made.rows[0][2:] == [None, None] and made.shown(1, 3) == "75.0"


def test_gains_stand_beside_the_papers(html: str, evaluated: RunDir) -> None:
    mixse = next(row for row in table(evaluated, "gains") if (row["system"], row["benchmark"]) == ("MiXSE", "gsm8k"))
    assert mixse["minus base"] == "0.2" and mixse["the paper's, Gemma-7B"] == "0.525"
    assert float(mixse["the paper's minus base, Gemma-7B"]) == pytest.approx(0.1)


def test_the_papers_means_are_those_that_it_prints() -> None:
    means = {"base": 47.8, "expert-math": 51.1, "instance": 52.4, "dare": 44.3, "top1": 54.3, "first2": 49.8}
    for system, mean in means.items():
        scores = [paper_score(system, benchmark) or 0 for benchmark in TARGETS]
        assert 100 * sum(scores) / 4 == pytest.approx(mean, abs=0.051), system


def test_scaling_forgetting_draws_bases_and_leaks(html: str, evaluated: RunDir) -> None:
    data = [(row["system"], row["synthetic data (%)"], row["mean score"]) for row in table(evaluated, "scaling_data")]
    assert sorted(data) == [
        ("MiXSE", "100", "0.55"),
        ("MiXSE", "50", "0.5"),
        ("instance merging", "100", "0.45"),
        ("instance merging", "50", "0.4"),
    ]
    assert not evaluated.storage.exists("report/tables/scaling_experts.csv")
    assert [row["benchmark"] for row in table(evaluated, "forgetting")] == ["piqa"]
    assert table(evaluated, "draws")[0]["draw 2"] == "0.5" and table(evaluated, "bases")[0]["MiXSE"] == "0.3"
    (gsm8k, piqa) = table(evaluated, "leaked")
    assert (gsm8k["leaked items"], piqa["leaked items"]) == ("1", "0")
    assert gsm8k["MiXSE minus base"] == "0.2" and float(gsm8k["the same without them"]) == pytest.approx(0.1)
    assert "Where the tokens of benchmarks go" in html and 'aria-label="Routing by layer, gsm8k"' in html


def test_later_stages_take_their_time(html: str, evaluated: RunDir) -> None:
    seconds = {row["stage"]: float(row["seconds"]) for row in table(evaluated, "stages")}
    assert seconds["variants"] == 7 + 23 and seconds["evaluation"] == 5


def test_what_was_not_evaluated_is_left_out(config: RunConfig, finished: RunDir) -> None:
    write_report(config, finished)
    page = finished.storage.read_bytes("report/index.html").decode()
    assert 'id="benchmarks"' not in page and not finished.storage.exists("report/tables/benchmarks.csv")


def test_what_was_evaluated_with_another_mixture_is_left_out(config: RunConfig, evaluated: RunDir) -> None:
    evaluated.write_manifest(evaluated.MIXSE, {"other": 1}, {}, {}, 1.0)
    write_report(config, evaluated)
    page = evaluated.storage.read_bytes("report/index.html").decode()
    assert 'id="benchmarks"' not in page and 'id="benchmark_routing"' not in page

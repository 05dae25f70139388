"""Scores over several draws of few-shot examples."""

from __future__ import annotations

import pytest

from selfmoe_ray.evaluation.benchmarks import draw_name, split_draw
from selfmoe_ray.evaluation.draws import draw_table
from selfmoe_ray.evaluation.main_table import Evaluated


def cells(system: str, gsm8k: list[float], mmlu: float | None) -> list[Evaluated]:
    scores = {draw_name("gsm8k", draw): score for draw, score in enumerate(gsm8k)}
    if mmlu is not None:
        scores["mmlu"] = mmlu
    return [Evaluated(system, benchmark, "acc,none", {"score": score}, {}) for benchmark, score in scores.items()]


def test_names() -> None:
    assert [draw_name("a", draw) for draw in range(3)] == ["a", "a.draw2", "a.draw3"]
    assert [split_draw(draw_name("a", draw)) for draw in range(3)] == [("a", 0), ("a", 1), ("a", 2)]


def test_means_spread_and_test_over_draws() -> None:
    made = [*cells("base", [0.1, 0.2, 0.3], 0.5), *cells("mixse", [0.3, 0.4, 0.6], 0.5), *cells("ties", [0.1], 0.5)]
    base, mixse = draw_table(made)
    assert base.scores == pytest.approx((0.3, 0.35, 0.4)) and base.mean == pytest.approx(0.35)
    assert base.sd == pytest.approx(0.05) and mixse.mixse_minus is None
    # Differences 0.1, 0.1, 0.15: mean 0.11667, standard error 0.016667, t = 7 with 2 degrees of freedom.
    assert base.mixse_minus == pytest.approx(7 / 60) and base.p == pytest.approx(0.0198, abs=1e-4)


def test_a_difference_that_never_changes_has_no_test() -> None:
    base, _ = draw_table([*cells("base", [0.1, 0.2], None), *cells("mixse", [0.2, 0.3], None)])
    assert base.mixse_minus == pytest.approx(0.1) and base.p is None


def test_one_draw_is_no_table() -> None:
    assert draw_table(cells("base", [0.1], 0.5)) == [] == draw_table([])

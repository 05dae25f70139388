"""The metric as lm-eval's humaneval and mbpp load and call it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation import lm_eval_metrics

TEST = "assert add(2, 3) == 5"
RIGHT, WRONG, ENDLESS = "def add(a, b): return a + b", "def add(a, b): return a * b", "while True: pass"


@pytest.fixture
def metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(Path(lm_eval_metrics.__file__).parent)
    import evaluate

    return evaluate.load("code_eval", cache_dir=str(tmp_path / "cache"))


def test_pass_at_k_over_right_wrong_and_endless_candidates(metric, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    scores, results = metric.compute(
        references=[TEST, TEST], predictions=[[WRONG, RIGHT, ENDLESS], [RIGHT, RIGHT, RIGHT]], k=[1, 2, 10], timeout=1.0
    )
    # Of the first problem's candidates one in three passes; two draws find it with chance 2/3.
    assert scores == {"pass@1": pytest.approx((1 / 3 + 1) / 2), "pass@2": pytest.approx((2 / 3 + 1) / 2)}
    assert [result["result"] for _, result in results[0]] == ["failed: AssertionError", "passed", "timed out"]
    assert all(result["passed"] for _, result in results[1])
    assert math.isclose(sum(candidate for candidate, _ in results[1]), 0 + 1 + 2)


def test_nothing_runs_unless_it_is_asked_for(metric, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(UserError, match="HF_ALLOW_CODE_EVAL=1"):
        metric.compute(references=[TEST], predictions=[[RIGHT]], k=[1])

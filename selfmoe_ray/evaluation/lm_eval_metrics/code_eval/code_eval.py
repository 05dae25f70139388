"""pass@k of generated programs, each run in the sandbox: `evaluate.load("code_eval")` without a hub.

`evaluate` finds this folder when it lies below the current directory or is named by its path. It is
called as the hub's metric of that name is, and like that runs nothing unless HF_ALLOW_CODE_EVAL is 1.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import evaluate

from selfmoe_ray.errors import UserError
from selfmoe_ray.sandbox.program import ProgramLimits, run_program

Result = dict[str, Any]


class CodeEval(evaluate.Metric):
    """Metric of name "code_eval"."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="pass@k of generated programs, each run in a sandbox",
            citation="",
            inputs_description="predictions: the candidates of each problem; references: the test of each problem",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[str],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = 4,
        timeout: float = 3.0,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, Result]]]]:
        """pass@k for each k, and for each problem its (candidate, result) pairs.

        predictions: [problems][candidates] programs; references: [problems] tests appended to them;
        timeout: seconds for each program. A k above the number of candidates is left out.
        Raises UserError unless HF_ALLOW_CODE_EVAL is 1, or where there is no sandbox.
        """
        if os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
            raise UserError(
                "this task runs Python programs that a model wrote, in a sandbox on this machine; "
                "set the environment variable HF_ALLOW_CODE_EVAL=1 to allow it"
            )
        limits = ProgramLimits(wall_seconds=timeout, cpu_seconds=math.ceil(timeout))
        results: dict[int, list[tuple[int, Result]]] = {}
        with ThreadPoolExecutor(num_workers) as pool:
            jobs = [
                pool.submit(_run, task, candidate, f"{program}\n{test}", limits)
                for task, (programs, test) in enumerate(zip(predictions, references, strict=True))
                for candidate, program in enumerate(programs)
            ]
            for job in jobs:
                result = job.result()
                results.setdefault(result["task_id"], []).append((result["completion_id"], result))
        return _pass_at_each_k(results, k), results


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, hold one that passed."""
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def _run(task: int, candidate: int, program: str, limits: ProgramLimits) -> Result:
    outcome = run_program(program, run_model_written_code=True, limits=limits)
    words = outcome.status if outcome.passed or outcome.status == "timed out" else f"failed: {outcome.detail}"
    return {"task_id": task, "passed": outcome.passed, "result": words, "completion_id": candidate}


def _pass_at_each_k(results: dict[int, list[tuple[int, Result]]], ks: Sequence[int]) -> dict[str, float]:
    counts = [(len(of_task), sum(result["passed"] for _, result in of_task)) for of_task in results.values()]
    return {
        f"pass@{k}": math.fsum(pass_at_k(samples, passed, k) for samples, passed in counts) / len(counts)
        for k in ks
        if counts and all(samples >= k for samples, _ in counts)
    }

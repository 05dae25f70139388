"""What each study compares, and what several of them share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from selfmoe_ray.config import RunConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.studies import STUDIES, Evaluations, plan_studies, select_studies
from selfmoe_ray.evaluation.systems import select_systems
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.mixture.systems import OTHERS, TARGETS
from selfmoe_ray.run.run_dir import RunDir

EXPERTS = ("knowledge", "reasoning", "math", "coding")
SPEC = MixtureSpec(experts=EXPERTS, ranks=(2,) * 4, alphas=(4.0,) * 4)


def plan(*names: str, tasks: tuple[str, ...] = ()) -> list[Evaluations]:
    return plan_studies(select_studies(names), EXPERTS, tasks, draws=3, percents=(50,))


def test_the_systems_of_every_study_are_known() -> None:
    for study in STUDIES:
        for each in plan(study):
            assert select_systems(each.systems, SPEC, RunConfig())


def test_experts_are_added_in_order() -> None:
    assert plan("table4") == [Evaluations(("base", "expert-knowledge", "first2", "first3", "mixse"), tuple(TARGETS))]


def test_studies_of_equal_benchmarks_are_one_evaluation() -> None:
    assert plan("table8", "fig3") == [Evaluations(("base", "seeds", "mixse"), tuple(TARGETS))]
    everything = plan("all")
    assert [(each.tasks, each.draws) for each in everything] == [(tuple(TARGETS), 1), (OTHERS, 1), (tuple(TARGETS), 3)]
    assert len(everything[0].systems) == len(set(everything[0].systems))
    assert {"data50", "instance50", "joint", "first3", "seeds", "dare"} <= set(everything[0].systems)


def test_other_tasks_take_the_place_of_the_papers() -> None:
    assert [(each.tasks, each.draws) for each in plan("all", tasks=("piqa",))] == [(("piqa",), 1), (("piqa",), 3)]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["tabel1"], "did you mean table1"), (["x"], "there are table1, "), ([], "none is named")],
)
def test_unknown_studies_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select_studies(names)


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_trained_and_evaluated(config: RunConfig, run_dir: RunDir) -> None:
    run_dir.write_start(config.model_dump(mode="json"), {})
    run_dir.write_manifest("variants/instance/mixse", {}, {}, {}, 1.0)
    job = Path(__file__).parents[2] / "jobs/studies.py"
    command = [sys.executable, str(job), "--study", "table1,table8", "--run", run_dir.storage.path(), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "evaluate on mmlu, bbh, gsm8k, humaneval: base, expert-math, expert-coding, instance, ties" in done.stdout
    assert "  instance: trained, jointly\n  seeds: to train, experts and router\n" in done.stdout

"""What goes away while a mixture is evaluated, and what the evaluation makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.tiny_tasks import ROWS, write_tiny_tasks
from tests.faults.conftest import ROOT, STEP_SECONDS, Run, engine_actors, engine_cores, wait_until
from tests.measure.conftest import run_config, write_run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]
SYSTEMS, TASKS = ("base", "mixse"), ("tiny_generation", "tiny_choice")


class EvaluatedRun(Run):
    """A run that is finished up to its mixture."""

    def start(self, **generation: Any) -> subprocess.Popen[str]:  # type: ignore[override]
        """Begin a job that evaluates it; generation: settings of `resources.generation`."""
        settings = {**self.config["resources"]["generation"], **generation}
        settings["env_vars"] = {**self.config["resources"]["generation"]["env_vars"], **generation.get("env_vars", {})}
        self.run_dir.write_start({**self.config, "resources": {"generation": settings}}, {})
        options = {
            "run": self.run_dir.storage.path(), "systems": ",".join(SYSTEMS), "tasks": ",".join(TASKS),
            "task-files": self.folder.parent / "tasks", "shard-size": 2, "traced-items": 2, "dtype": "float32",
            "max-model-len": 512,
        }  # fmt: skip
        command = [sys.executable, f"{ROOT}/jobs/eval.py", *(f"--{name}={value}" for name, value in options.items())]
        log = (self.folder / f"log-{len(self.started)}").open("w")
        job = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, text=True
        )
        self.started.append(job)
        return job

    def parts(self) -> dict[Path, int]:
        """When each part of answers was written; those of finished benchmarks are gone."""
        found = (self.folder / self.config["run_name"]).glob("eval/*/*/parts/*.jsonl")
        return {path: path.stat().st_mtime_ns for path in found}

    def answered(self) -> list[tuple[str, str, str]]:
        """System, benchmark and the items that are answered by then, shard after shard."""
        return [
            (event["system"], event["benchmark"], event["items"])
            for event in self.events()
            if "items_per_second" in event
        ]

    def results(self) -> dict[str, Any]:
        """Scores and answers of every system on every benchmark, and the traces."""
        storage = self.run_dir.storage
        found: dict[str, Any] = {"routing": storage.read_json("eval/routing.json")}
        for folder in (f"eval/{system}/{task}" for system in SYSTEMS for task in TASKS):
            found[folder] = storage.read_json(f"{folder}/scores.json"), storage.read_jsonl(f"{folder}/samples.jsonl")
            assert not storage.exists(f"{folder}/parts")
        return found


@pytest.fixture(scope="module")
def make_evaluated(
    cluster: Any,
    parts_of_runs: dict[str, Any],
    tiny_model_dir: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], EvaluatedRun]]:
    """`make_evaluated(name)`: a run of its own, of the same tiny mixture each time, that is not evaluated yet."""
    folder, runs = tmp_path_factory.mktemp("evaluations"), []
    write_tiny_tasks(folder / "tasks")

    def make(name: str) -> EvaluatedRun:
        (folder / name).mkdir()
        config = run_config(folder / name, tiny_model_dir())
        write_run(config)
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "PYTHONPATH": parts_of_runs["plugin"],
            "FAULT_STEP_SECONDS": str(STEP_SECONDS),
        }
        values = config.model_dump(mode="json") | {"resources": {"generation": {"env_vars": environment}}}
        of_job = {**os.environ, "RAY_ADDRESS": cluster.address, "SELFMOE_RAY_CACHE": str(folder / "cache")}
        runs.append(EvaluatedRun(folder / name, values, of_job))
        return runs[-1]

    yield make
    for job in (job for run in runs for job in run.started):
        if job.poll() is None:
            job.kill()


@pytest.fixture(scope="module")
def undisturbed(make_evaluated: Callable[[str], EvaluatedRun]) -> EvaluatedRun:
    """A run whose evaluation nothing happened to."""
    run = make_evaluated("undisturbed")
    run.complete()
    assert len(run.answered()) == len(SYSTEMS) * -(-ROWS // 2) + len(SYSTEMS) * ROWS
    return run


def in_the_midst(run: EvaluatedRun) -> Any:
    """A job that has written some answers, but not all."""
    job = run.start()
    wait_until(lambda: run.parts() or job.poll() is not None, 240, "a first part")
    assert job.poll() is None, run.finish(job)
    return job


def assert_not_missed(run: EvaluatedRun, undisturbed: EvaluatedRun) -> None:
    """Equal answers and scores, and each shard answered once."""
    assert run.results() == undisturbed.results()
    assert sorted(run.answered()) == sorted(undisturbed.answered())


def test_a_killed_engine_core_is_replaced(
    make_evaluated: Callable[[str], EvaluatedRun], undisturbed: EvaluatedRun
) -> None:
    run = make_evaluated("core")
    job = in_the_midst(run)
    (core,) = engine_cores()
    core.kill()
    said = run.finish(job)
    assert job.returncode == 0 and "starts anew" in said, said[-6000:]
    assert_not_missed(run, undisturbed)


def test_a_killed_actor_is_replaced_and_takes_its_engine_along(
    make_evaluated: Callable[[str], EvaluatedRun], undisturbed: EvaluatedRun
) -> None:
    run = make_evaluated("actor")
    job = in_the_midst(run)
    (core,), (actor,) = engine_cores(), engine_actors()
    actor.kill()
    wait_until(lambda: not core.is_running(), 20, "the end of the orphaned core")
    said = run.finish(job)
    assert job.returncode == 0 and "starts anew" in said, said[-6000:]
    assert_not_missed(run, undisturbed)


def test_an_engine_that_hangs_is_ended_and_replaced(
    make_evaluated: Callable[[str], EvaluatedRun], undisturbed: EvaluatedRun, tmp_path: Path
) -> None:
    run = make_evaluated("hang")
    hung = tmp_path / "hung"
    job = run.start(stall_seconds=150, env_vars={"FAULT_HANG_ONCE": str(hung)})
    said = run.finish(job, 700)
    assert job.returncode == 0 and hung.exists() and said.count("no answer for 150 s") == 1, said[-6000:]
    assert_not_missed(run, undisturbed)

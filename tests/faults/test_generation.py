"""What goes away while a run generates, and what the run makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.generation.prompts import sampling_seed
from tests.faults.conftest import DOMAINS, Run, engine_actors, engine_cores, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(make_run: Callable[[str], Run]) -> dict[str, list[tuple[str, str, str]]]:
    """The examples of a run that nothing happened to."""
    run = make_run("undisturbed")
    run.complete()
    examples = run.examples()
    assert all(len(rows) > 8 for rows in examples.values()), examples
    return examples


def in_the_midst(run: Run, **options: Any) -> Any:
    """A job that has finished some parts of its first wave, but not all."""
    job = run.start(**options)
    wait_until(lambda: run.parts() or job.poll() is not None, 240, "a first part")
    assert job.poll() is None, run.finish(job)
    return job


def test_a_killed_engine_core_is_replaced(make_run: Callable[[str], Run], undisturbed: Any) -> None:
    run = make_run("core")
    job = in_the_midst(run)
    (core,) = engine_cores()
    core.kill()
    said = run.finish(job)
    assert job.returncode == 0, said[-6000:]
    assert run.examples() == undisturbed


def test_a_killed_actor_is_replaced_and_takes_its_engine_along(
    make_run: Callable[[str], Run], undisturbed: Any
) -> None:
    run = make_run("actor")
    job = in_the_midst(run)
    (core,), (actor,) = engine_cores(), engine_actors()
    actor.kill()
    wait_until(lambda: not core.is_running(), 20, "the end of the orphaned core")
    said = run.finish(job)
    assert job.returncode == 0, said[-6000:]
    assert run.examples() == undisturbed


def test_a_killed_driver_goes_on_and_no_second_job_gets_in(make_run: Callable[[str], Run], undisturbed: Any) -> None:
    run = make_run("driver")
    job = in_the_midst(run)
    second = run.start()
    said = run.finish(second)
    assert second.returncode == 2 and "is being worked on by another job" in said
    job.kill()
    job.wait()
    finished = run.parts()
    wait_until(lambda: not engine_cores(), 60, "the end of the driver's engines")
    run.complete()
    assert finished.items() <= run.parts().items(), "what was finished was not made again"
    assert run.examples() == undisturbed


def test_a_prompt_that_kills_its_engine_is_rejected_alone(make_run: Callable[[str], Run]) -> None:
    run = make_run("poison")
    poisonous = f"{DOMAINS[0]}/000/0001/0003"
    seed = str(sampling_seed(0, "brainstorm", poisonous))
    said = run.complete(max_failures=0, env_vars={"FAULT_POISON": seed, "FAULT_STEP_SECONDS": "0"})
    rejected = [row for name in DOMAINS for row in run.run_dir.read_rejects(name) if row.reason == "engine_error"]
    assert [row.id for row in rejected] == [poisonous], said[-6000:]
    assert all(len(rows) > 8 for rows in run.examples().values())


def test_an_engine_that_hangs_is_ended_and_replaced(
    make_run: Callable[[str], Run], undisturbed: Any, tmp_path: Path
) -> None:
    run = make_run("hang")
    hung = tmp_path / "hung"
    said = run.complete(stall_seconds=60, env_vars={"FAULT_HANG_ONCE": str(hung)})
    assert hung.exists() and "no answer for 60 s" in said
    assert run.examples() == undisturbed


def test_a_node_that_goes_away_with_its_engine_is_not_missed(
    make_run: Callable[[str], Run], undisturbed: Any, cluster: Any
) -> None:
    run = make_run("node")
    job = in_the_midst(run)
    (with_engine,) = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    cluster.add_node(num_cpus=1)
    cluster.remove_node(with_engine, allow_graceful=False)
    said = run.finish(job)
    assert job.returncode == 0, said[-6000:]
    assert run.examples() == undisturbed


def test_a_head_that_is_gone_is_not_missed_by_the_job_on_the_next_one(
    make_run: Callable[[str], Run], undisturbed: Any, cluster: Any
) -> None:
    from ray.cluster_utils import Cluster

    run = make_run("head")
    heads = [Cluster(initialize_head=True, head_node_args={"num_cpus": 1})]
    try:
        run.environment["RAY_ADDRESS"] = heads[0].address
        job = in_the_midst(run)
        finished = run.parts()
        heads[0].remove_node(heads[0].head_node, allow_graceful=False)
        job.kill()
        job.wait()
        wait_until(lambda: not engine_cores(), 60, "the end of the head's engines")
        heads.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 1}))
        run.environment["RAY_ADDRESS"] = heads[1].address
        run.complete()
    finally:
        heads[-1].shutdown()
    assert finished.items() <= run.parts().items(), "what was finished was not made again"
    assert run.examples() == undisturbed


def test_storage_that_refuses_writes_stops_the_run_until_it_takes_them(
    make_run: Callable[[str], Run], undisturbed: Any
) -> None:
    run = make_run("storage")
    job = in_the_midst(run)
    folder = run.folder / "storage/data" / DOMAINS[1]
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("no folder")
    said = run.finish(job)
    assert job.returncode == 2 and "cannot write" in said and "run again to go on" in said
    folder.unlink()
    aside.rename(folder)
    finished = run.parts()
    run.complete()
    assert finished.items() <= run.parts().items()
    assert run.examples() == undisturbed

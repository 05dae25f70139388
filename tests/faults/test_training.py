"""What goes away while a run trains, and jobs that are stopped in any stage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.conftest import DOMAINS, ROOT, Run, find_processes, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
# By then Ray Train has put down a checkpoint.
LATER_STEP = 10


@pytest.fixture(scope="module")
def undisturbed(make_run: Callable[[str], Run]) -> Run:
    run = make_run("whole")
    run.complete(program="stage_mixse", env_vars={"FAULT_STEP_SECONDS": "0"})
    return run


@pytest.fixture
def generated(make_run: Callable[[str], Run], undisturbed: Run, request: pytest.FixtureRequest) -> Run:
    """A run that has its examples and nothing else."""
    run = make_run(request.node.name.removeprefix("test_")[:24])
    run.take_results_of(undisturbed, ["data"])
    return run


def steps(run: Run) -> int:
    """Optimizer steps that the run's newest trainer has told of."""
    told = [event["step"] for event in run.events() if event["kind"] == "experts" and "step" in event]
    return int(told[-1].split("/")[0]) if told else 0


def in_the_midst(run: Run) -> Any:
    job = run.start("stage_mixse")
    wait_until(lambda: steps(run) >= LATER_STEP or job.poll() is not None, 240, "some steps")
    assert job.poll() is None, run.finish(job)
    return job


def weights(run: Run) -> dict[str, Any]:
    """Every tensor of the mixture."""
    from safetensors.numpy import load_file

    folder = run.folder / run.config["run_name"] / "mixse"
    files = [folder / "router.safetensors", *(folder / f"experts/{name}/adapter_model.safetensors" for name in DOMAINS)]
    return {f"{file.parent.name}/{key}": value for file in files for key, value in load_file(file).items()}


def assert_same_mixture(run: Run, other: Run, tolerance: float = 1e-5) -> None:
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys()
    assert max(float(abs(one[key] - two[key]).max()) for key in one) < tolerance


def continued(run: Run) -> bool:
    return any("continues after step" in event.get("message", "") for event in run.events())


def test_a_killed_driver_goes_on_from_a_checkpoint(generated: Run, undisturbed: Run) -> None:
    job = in_the_midst(generated)
    job.kill()
    job.wait()
    wait_until(lambda: not find_processes("RayTrainWorker"), 60, "the end of the driver's workers")
    generated.complete(program="stage_mixse")
    assert continued(generated)
    assert_same_mixture(generated, undisturbed)


def test_a_killed_worker_is_replaced(generated: Run, undisturbed: Run) -> None:
    job = in_the_midst(generated)
    find_processes("RayTrainWorker")[0].kill()
    said = generated.finish(job)
    assert job.returncode == 0 and continued(generated), said[-6000:]
    assert_same_mixture(generated, undisturbed)


def test_a_node_that_goes_away_with_its_trainer_is_not_missed(generated: Run, undisturbed: Run, cluster: Any) -> None:
    job = in_the_midst(generated)
    (with_trainer,) = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    cluster.add_node(num_cpus=1)
    cluster.remove_node(with_trainer, allow_graceful=False)
    said = generated.finish(job)
    assert job.returncode == 0 and continued(generated), said[-6000:]
    assert_same_mixture(generated, undisturbed)


# What a stage begins with.
BEFORE = {
    "generate": [],
    "experts": ["data"],
    "router": ["data", "experts"],
    "measure": ["data", "experts", "router", "mixse"],
}


@pytest.mark.parametrize("stage", BEFORE)
def test_a_stopped_job_goes_on_as_another_job(
    stage: str, make_run: Callable[[str], Run], undisturbed: Run, cluster: Any
) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    run = make_run(f"stopped-{stage}")
    run.take_results_of(undisturbed, BEFORE[stage])
    path = run.write_config()
    client = JobSubmissionClient(f"http://{cluster.head_node.webui_url}")
    program = "stage_measure_nll" if stage == "measure" else "stage_mixse"
    command = f"{sys.executable} {ROOT}/jobs/{program}.py --config {path}"

    def begun() -> bool:
        return any(event["kind"] == stage and event.get("message") == "begins" for event in run.events())

    first = client.submit_job(entrypoint=command)
    wait_until(begun, 240, f"the beginning of {stage}")
    client.stop_job(first)
    wait_until(lambda: client.get_job_status(first) == JobStatus.STOPPED, 60, "the end of the job")
    assert '"status": "stopped"' in client.get_job_logs(first)
    second = client.submit_job(entrypoint=command)
    wait_until(lambda: client.get_job_status(second).is_terminal(), 300, "the end of the second job")
    assert client.get_job_status(second) == JobStatus.SUCCEEDED, client.get_job_logs(second)[-6000:]
    assert_same_mixture(run, undisturbed)
    if stage == "measure":
        assert (run.folder / run.config["run_name"] / "measure" / "manifest.json").exists()

"""Several Ray nodes on this machine, runs on them as processes of their own, and what must not be left of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from selfmoe_ray.machines.processes import with_variable
from selfmoe_ray.run.run_dir import RunDir
from tests.faults.chatty import save_chatty_model, save_domain
from tests.faults.engine_faults import install_into
from tests.living import find_named

ROOT = Path(__file__).parents[2]
DOMAINS = ("ant", "bee")
STEP_SECONDS = 0.2
MARK = "FAULT_SESSION"
# What killed processes of OpenMP and joblib leave: a page each, which nothing but they can take away.
OWN_SHM = ("__KMP_REGISTERED_LIB_", "sem.loky-")

# What a run's actors and tasks are called as processes; Ray Data keeps some of its own for all jobs.
WORKERS = (
    "ray::MapWorker", "ray::Inbox", "ray::generate ", "ray::evaluate ", "ray::train ", "RayTrainWorker",
    "ray::TrainController", "ray::_Progress", "ray::_measure_events",
)  # fmt: skip


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The condition's value once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come in {seconds} s")
        time.sleep(0.1)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_processes(name: str) -> list[psutil.Process]:
    """Living processes of this session's clusters, whoever their parent is by now, whose command line holds a name."""
    found = []
    for pid in with_variable(MARK, os.environ[MARK]):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return find_named(name, found)


def engine_cores() -> list[psutil.Process]:
    return find_processes("VLLM::EngineCore")


def engine_actors() -> list[psutil.Process]:
    """The actors of Ray Data that hold an engine."""
    return [core.parent() for core in engine_cores() if core.parent() is not None]


@dataclass
class Run:
    """A run's directory and config, and the programs that work on it."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.config["root"], self.config["run_name"])

    def start(self, program: str = "stage_generate", **generation: Any) -> subprocess.Popen[str]:
        """Begin a job; generation: settings of `resources.generation` beside the usual."""
        path = self.write_config(**generation)
        command = [sys.executable, str(ROOT / f"jobs/{program}.py"), "--config", str(path)]
        log = (self.folder / f"log-{len(self.started)}").open("w")
        job = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, text=True
        )
        self.started.append(job)
        return job

    def write_config(self, **generation: Any) -> Path:
        """The run's config as a file."""
        settings = {**self.config["resources"]["generation"], **generation}
        settings["env_vars"] = {**self.config["resources"]["generation"]["env_vars"], **generation.get("env_vars", {})}
        config = {**self.config, "resources": {**self.config["resources"], "generation": settings}}
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def finish(self, job: subprocess.Popen[str], seconds: float = 300) -> str:
        """Wait for a job and return what it said."""
        job.wait(seconds)
        return (self.folder / f"log-{self.started.index(job)}").read_text()

    def events(self) -> list[dict[str, Any]]:
        """What the run has told so far."""
        path = self.folder / self.config["run_name"] / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def take_results_of(self, other: Run, stages: Iterable[str]) -> None:
        """Begin where another run has finished these stages' folders."""
        theirs, ours = (each.folder / each.config["run_name"] for each in (other, self))
        for stage in stages:
            shutil.copytree(theirs / stage, ours / stage)

    def complete(self, **options: Any) -> str:
        """Run a job to its good end."""
        job = self.start(**options)
        said = self.finish(job)
        assert job.returncode == 0, said[-6000:]
        return said

    def parts(self) -> dict[Path, int]:
        """When each finished part of raw completions was written."""
        found = sorted((self.folder / self.config["run_name"]).glob("data/*/*/part-*.parquet"))
        return {path: path.stat().st_mtime_ns for path in found}

    def examples(self) -> dict[str, list[tuple[str, str, str]]]:
        """Each domain's examples; their ids are distinct."""
        found = {}
        for domain in DOMAINS:
            rows = self.run_dir.read_examples(domain)
            assert len({row.id for row in rows}) == len(rows)
            found[domain] = [(row.id, row.instruction, row.output) for row in rows]
        return found


@pytest.fixture(scope="session")
def cluster(s3_server: Any) -> Iterator[Any]:
    """A head without CPUs, where drivers are, and a node with one, where engines are."""
    from ray.cluster_utils import Cluster

    # Nodes and jobs have this process's environment.
    os.environ.update({**s3_server.environment, MARK: uuid.uuid4().hex})
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": free_port()}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture(scope="session")
def parts_of_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Model, domains and plugin of all runs."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        "base_model": str(save_chatty_model(folder / "model")),
        "domains": [save_domain(folder, name) for name in DOMAINS],
        # Engines import the package from where these tests lie.
        "plugin": os.pathsep.join([install_into(folder / "plugin"), str(ROOT)]),
    }


@pytest.fixture(scope="session")
def make_run(
    cluster: Any, parts_of_runs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Run]]:
    """`make_run(name)`: a run of its own that nothing has been done for yet."""
    runs = []

    def make(name: str) -> Run:
        phase = {"seeds_in_context": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": 48}
        config = {
            "run_name": name,
            "base_model": parts_of_runs["base_model"],
            "domains": parts_of_runs["domains"],
            "generation": {
                "seeds_per_domain": 6, "examples_per_domain": 24, "max_rounds": 4, "part_size": 8, "dtype": "float32",
                "max_model_len": 512, "brainstorm": phase, "respond": phase, "accept_fewer": True,
            },
            "training": {
                "dtype": "float32", "max_length": 128, "experts": {"batch_size": 4, "epochs": 4},
                "router": {"batch_size": 8, "fit_tokens": 512},
            },
            "measure": {"max_rows_per_domain": 4, "answer_tokens": 8},
            "resources": {
                "generation": {
                    "env_vars": {
                        "VLLM_CPU_KVCACHE_SPACE": "1",
                        "PYTHONPATH": parts_of_runs["plugin"],
                        "FAULT_STEP_SECONDS": str(STEP_SECONDS),
                    }
                },
                "training": {"cpus_per_worker": 1, "checkpoint_every_steps": 4},
            },
        }  # fmt: skip
        folder = tmp_path_factory.mktemp(name)
        run = Run(folder, {**config, "root": str(folder)}, {**os.environ, "RAY_ADDRESS": cluster.address})
        runs.append(run)
        return run

    yield make
    for job in (job for run in runs for job in run.started):
        if job.poll() is None:
            job.kill()


def in_shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if not name.startswith(OWN_SHM)}


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Any) -> Iterator[None]:
    """After each test: no engine, no actor or task of a run, no placement group, nothing new in shared memory."""
    from ray.util.state import list_placement_groups

    def groups() -> list[str]:
        found = list_placement_groups(address=f"http://{cluster.head_node.webui_url}")
        return [group.placement_group_id for group in found if group.state != "REMOVED"]

    before = in_shared_memory()
    yield
    wait_until(lambda: not find_processes("VLLM::"), 30, "the end of all engines")
    wait_until(lambda: not any(map(find_processes, WORKERS)), 60, "the end of all actors and tasks")
    wait_until(lambda: not groups(), 30, "the end of all placement groups")
    assert in_shared_memory() <= before

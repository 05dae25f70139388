"""The whole pipeline through `ray job submit` on a real head with token authentication, embedded model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CONFIG = """
run_name: submitted
base_model: embedded
domains: [math, reasoning]
generation:
  {seeds_per_domain: 8, examples_per_domain: 3, accept_fewer: true, max_rounds: 2, part_size: 8, max_model_len: 1024,
   brainstorm: {max_tokens: 96}, respond: {max_tokens: 96}}
training:
  {sources: [synthetic, seeds], dtype: float32, max_length: 256, experts: {epochs: 1, batch_size: 8},
   router: {batch_size: 16, fit_tokens: 1024}}
measure: {max_rows_per_domain: 2, answer_tokens: 8}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of clients of a head that asks for a token."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text("0123456789abcdef0123456789abcdef")
    port = free_port()
    # Sockets live below it, and their paths have to be short.
    temporary = tempfile.mkdtemp(prefix="ray-")
    environment = {
        **os.environ,
        "RAY_TMPDIR": temporary,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        str(BIN / "ray"), "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=2",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--disable-usage-stats",
    ]  # fmt: skip
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for_dashboard(port)
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)


def wait_for_dashboard(port: int) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2)
            return
        except urllib.error.HTTPError as error:
            assert error.code in (401, 403)
            return
        except OSError:
            time.sleep(1)
    raise AssertionError("the head's dashboard did not come up")


def submit(
    environment: dict[str, str], *arguments: str, program: str = "jobs/pipeline.py"
) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", "python", program]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580
    )


@pytest.mark.slow
def test_a_stranger_without_the_token_is_refused(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("f" * 32)
    done = submit({**head, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, "--help")
    assert done.returncode != 0 and "stages" not in done.stdout


@pytest.mark.slow
def test_a_relative_root_is_refused_in_a_submitted_job(head: dict[str, str], tmp_path: Path) -> None:
    done = submit(head, "--config", "jobs/configs/demo.yaml")
    assert done.returncode != 0
    assert "root: 'runs' is relative, but a submitted job runs in a temporary copy" in done.stdout + done.stderr


@pytest.mark.slow
def test_the_doctor_looks_at_every_node_as_a_submitted_job(head: dict[str, str], tmp_path: Path) -> None:
    done = submit(head, "--root", str(tmp_path), program="jobs/doctor.py")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for found in ("cluster: 1 nodes answered", f"storage: {tmp_path} can be written", "auth: RAY_AUTH_MODE=token"):
        assert found in done.stdout
    assert "failed" not in done.stdout
    relative = submit(head, program="jobs/doctor.py")
    assert relative.returncode != 0 and "root: 'runs' is relative" in relative.stdout


@pytest.mark.slow
def test_impossible_resources_are_refused_before_any_work(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    asked = ("--set", f"root={tmp_path}/runs", "--set", "resources.training.workers_per_trainer=64")
    done = submit(head, "--config", str(tmp_path / "config.yaml"), *asked)
    assert done.returncode != 0
    assert "a trainer asks for 64 worker(s)" in done.stdout + done.stderr
    assert not (tmp_path / "runs/submitted/data").exists()


@pytest.mark.slow
def test_the_pipeline_runs_as_a_submitted_job_and_the_second_time_finds_all_done(
    head: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = ("--config", str(tmp_path / "config.yaml"), "--set", f"root={tmp_path}/runs")
    done = submit(head, *arguments)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    run = tmp_path / "runs" / "submitted"
    assert f"RESULT {json.dumps({'status': 'done', 'run': str(run)})}" in done.stdout
    for folder in (
        "data/math",
        "data/reasoning",
        "experts/math",
        "experts/reasoning",
        "router",
        "mixse",
        "measure",
    ):
        assert (run / folder / "manifest.json").exists(), folder
    assert "<html" in (run / "report/index.html").read_text()
    examples = json.loads((run / "data/math/manifest.json").read_text())["counts"]["examples"]
    assert 1 <= examples <= 3
    assert not (run / "checkpoints").exists() or not list((run / "checkpoints").iterdir())
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert {event["kind"] for event in events} >= {"generate", "experts", "router", "measure"}
    stamps = {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}

    again = submit(head, *arguments)
    assert again.returncode == 0 and "nothing, all is done" in again.stdout
    assert stamps == {path: path.stat().st_mtime_ns for path in run.rglob("manifest.json")}

"""What a user meets at the command line; each case is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faulty_bases import long_base

ROOT = Path(__file__).parents[2]
SCREEN = 24


def job(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs/pipeline.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("RESULT ")
    return json.loads(last.removeprefix("RESULT "))


def write_domain(folder: Path, seeds: str) -> str:
    folder.mkdir()
    settings = "name: law\ncovers: Law.\nrequirements: [One question.]\nanswer: Briefly.\nshape: free\n"
    (folder / "domain.yaml").write_text(settings)
    (folder / "seeds.jsonl").write_text(seeds)
    return str(folder)


CASES = {
    "unknown key": ("trainig: {}", "trainig: unknown setting; did you mean 'training'?"),
    "unknown domain": ("domains: [maths]", "'maths' is no built-in domain (nearest: math"),
    "missing seeds": ("domains: [DOMAIN]", "seeds.jsonl"),
    "unknown base": ("base_model: no/such-model", "base_model: 'no/such-model' was not found"),
    "too many experts a token": ("mixture: {num_experts_per_tok: 9}", "num_experts_per_tok: 9 asked"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_screen_and_no_traceback(case: str, tmp_path: Path) -> None:
    text, message = CASES[case]
    if "DOMAIN" in text:
        text = text.replace("DOMAIN", write_domain(tmp_path / "law", ""))
    config = tmp_path / "config.yaml"
    config.write_text(text)
    done = job("--config", str(config), folder=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= SCREEN
    assert result_of(done)["status"] == "refused"
    assert not list((tmp_path / "runs").rglob("manifest.json"))


def test_malformed_seeds_are_named_by_file_and_line(tmp_path: Path) -> None:
    good = '{"instruction": "What is a lien?", "input": "", "output": "A claim on property."}\n'
    folder = write_domain(tmp_path / "law", good + '{"instruction": "broken\n')
    config = tmp_path / "config.yaml"
    config.write_text(f"domains: [{folder}]")
    done = job("--config", str(config), folder=tmp_path)
    assert done.returncode == 2 and "seeds.jsonl:2: not valid JSON" in done.stderr


def test_dry_run_says_what_would_be_done_and_does_nothing(  # type: ignore[no-untyped-def]
    tmp_path: Path, tiny_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"domains: [math]\nbase_model: {long_base(tiny_model_dir(), tmp_path / 'base')}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = job("--config", str(config), "--dry-run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stage generate: to do" in done.stdout and "stage report: to do" in done.stdout
    assert "plan for 1 node(s)" in done.stdout and "  experts: 1 trainer(s) of up to 1 expert(s)" in done.stdout
    assert result_of(done) == {"status": "dry-run"} and not (tmp_path / "runs").exists()


def test_dry_run_refuses_a_plan_that_does_not_fit(  # type: ignore[no-untyped-def]
    tmp_path: Path, tiny_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"domains: [math]\nbase_model: {long_base(tiny_model_dir(), tmp_path / 'base')}\n"
        "training: {max_length: 100000}\n"
        "resources: {training: {micro_batch_size: 100000}}"
    )
    done = job("--config", str(config), "--dry-run", folder=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "experts: does not fit into a device's memory" in done.stderr
    assert "what would fit: resources.training.micro_batch_size=1\n" in done.stderr


STUBBORN = """
import os, sys, time
from selfmoe_ray.commands.job import run_command

def work():
    print("at work", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:
            if "GIVES_IN" in os.environ:
                raise
    return {"status": "done"}

run_command(work)
"""


@pytest.mark.parametrize("kind", ["GIVES_IN", "RAY_ADDRESS"])
def test_a_stopped_job_says_so_before_ray_kills_it(kind: str) -> None:
    """Also where a library swallows the interruption, on a cluster that outlives the job."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {kind: "1"}
    with subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        process.terminate()
        said, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "run the same command again" in errors
    assert json.loads(said.removeprefix("RESULT ")) == {"status": "stopped"}


def test_help_and_config_load_no_heavy_library(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom selfmoe_ray.commands.run import main, parser\n"
        "from selfmoe_ray.run.config_file import load_config\n"
        "parser().format_help()\n"
        f"load_config({str(ROOT / 'jobs/configs/demo.yaml')!r})\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_finished_stages_need_no_heavy_library() -> None:
    script = (
        "import sys\nimport selfmoe_ray.pipeline.run\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_a_full_disk_is_one_screen_and_keeps_what_is_written(tmp_path: Path) -> None:
    """A file system of 16 kB in a mount namespace of the test's own."""
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    disk = tmp_path / "disk"
    disk.mkdir()
    on_small_disk = f"mount -t tmpfs -o size=16k none {disk} && "
    if subprocess.run([*mount, on_small_disk + "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a user mount a file system of their own")
    config = tmp_path / "config.yaml"
    config.write_text(f"base_model: embedded\nroot: {disk}\nrun_name: full\n")
    command = f"{sys.executable} {ROOT}/jobs/pipeline.py --config {config}; status=$?; ls {disk}/full >&2; exit $status"
    done = subprocess.run([*mount, on_small_disk + command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in done.stderr and "Make room or choose another `root`" in done.stderr
    assert "Traceback" not in done.stderr and "run.yaml" in done.stderr

"""What a user meets at the command line of evaluation; each case is a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def job(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)


CASES = {
    "no run": (["eval.py", "--run", "runs/none"], "runs/none is no run: it has no run.yaml"),
    "shard size": (["eval.py", "--run", "x", "--shard-size", "0"], "0 given; it must be at least 1"),
    "study": (["studies.py", "--study", "tabel1", "--run", "x"], "no study 'tabel1'; did you mean table1"),
    "density": (
        ["eval.py", "--run", "x", "--merge-density", "1.5"],
        "density: Input should be less than or equal to 1",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_message_and_no_traceback(case: str, tmp_path: Path) -> None:
    arguments, message = CASES[case]
    done = job(*arguments, folder=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    if done.stdout:
        assert json.loads(done.stdout.strip().splitlines()[-1].removeprefix("RESULT "))["status"] == "refused"


@pytest.mark.parametrize("module", ["commands.eval", "commands.studies"])
def test_help_loads_no_heavy_library(module: str) -> None:
    script = (
        f"import sys\nfrom selfmoe_ray.{module} import parser\nparser().format_help()\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'lm_eval', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"

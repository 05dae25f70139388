"""The examples run as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.domains.domain import load_domains
from selfmoe_ray.generation.filters import check_response, check_task
from selfmoe_ray.pipeline.run import describe
from selfmoe_ray.run.config_file import load_config
from tests.faulty_bases import long_base

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def test_the_domain_of_ones_own_can_run(
    tiny_model_dir: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    changes = [f"base_model={long_base(tiny_model_dir(), tmp_path / 'base')}", f"root={tmp_path}"]
    config = load_config("examples/own_domain/run.yaml", changes)
    lines = describe(config).splitlines()
    assert "domain gardening: 8 seeds" in lines and "stage report: to do" in lines


def test_the_domains_seeds_would_pass_as_generated_rows() -> None:
    config = load_config(str(EXAMPLES / "own_domain" / "run.yaml"), [])
    (domain,) = load_domains([str(EXAMPLES / "own_domain" / "gardening")])
    for seed in domain.seeds:
        filters = config.generation.filters
        assert check_task(seed.instruction, seed.input, domain.shape, filters) is None
        assert check_response(seed.instruction, seed.input, seed.output, domain.shape, filters) is None


def test_the_gates_of_a_mixture_answer_and_are_shown(mixse_dir: Callable[..., Path]) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "gates.py", mixse_dir(), "--tokens", "3"],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for system in ("base", "expert knowledge", "uniform gates", "MiXSE"):
        assert any(line.startswith(f"{system}: ") for line in lines), done.stdout
    # Two layers of three experts.
    assert [len(line.split()) for line in lines[-2:]] == [4, 4]


def test_the_readmes_python_runs(mixse_dir: Callable[..., Path]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert '"runs/demo/mixse"' in code
    names: dict[str, Any] = {}
    exec(code.replace("runs/demo/mixse", str(mixse_dir())).replace("max_new_tokens=40", "max_new_tokens=3"), names)
    prompt = names["inputs"]["input_ids"]
    assert names["output"].shape[1] > prompt.shape[1]

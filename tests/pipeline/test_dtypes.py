"""`dtype: auto` is settled once a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.config import RunConfig
from selfmoe_ray.machines.hardware import FastDtype
from selfmoe_ray.pipeline import dtypes
from selfmoe_ray.pipeline.dtypes import settle_dtypes
from selfmoe_ray.run.run_dir import RunDir


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return RunDir(str(tmp_path), "run")


def settle(
    config: RunConfig, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, fast: str
) -> tuple[RunConfig, list[Any]]:
    said: list[Any] = []
    monkeypatch.setattr(dtypes, "fast_dtype_of_engines", lambda: FastDtype(fast, "a test", False))  # type: ignore[arg-type]
    return settle_dtypes(config, run_dir, lambda kind, **fields: said.append(fields["message"])), said


@pytest.mark.parametrize("fast", ["float32", "bfloat16"])
def test_auto_is_what_the_machine_is_fast_in(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, fast: str) -> None:
    config, said = settle(RunConfig(), run_dir, monkeypatch, fast)
    assert config.generation.dtype == config.training.dtype == fast
    assert said == [f"dtype: auto is {fast} here, on a test"]


def test_what_is_asked_for_stays(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = RunConfig.model_validate({"generation": {"dtype": "bfloat16"}, "training": {"dtype": "float32"}})
    assert settle(asked, run_dir, monkeypatch, "float32") == (asked, [])


def test_a_run_goes_on_with_what_it_has_on_another_machine(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = settle(RunConfig(), run_dir, monkeypatch, "bfloat16")
    run_dir.write_start(first.model_dump(mode="json"), {})
    assert settle(RunConfig(), run_dir, monkeypatch, "float32") == (first, [])

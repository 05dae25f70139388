"""Which numbers an event holds, and where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.scalars import Scalar, scalars
from selfmoe_ray.run.trackers import tracked

STEP = {"step": "3/20", "loss": {"math": 1.5, "coding": 1.25}, "tokens_per_second": 80.5, "seconds_left": 9}


def test_a_training_step_has_each_learners_loss() -> None:
    assert list(scalars("experts", STEP)) == [
        Scalar("tokens_per_second", 80.5, {"stage": "experts"}, 3),
        Scalar("loss", 1.5, {"stage": "experts", "learner": "math"}, 3),
        Scalar("loss", 1.25, {"stage": "experts", "learner": "coding"}, 3),
    ]


def test_a_wave_tells_what_was_made_and_what_was_rejected() -> None:
    fields = {"message": "wave done", "wave": 1, "domain": "math", "examples": 7}
    found = {
        each.path: each.value
        for each in scalars("generate", {**fields, "brainstorm_valid": "12/40", "respond_valid": "7/10"})
    }
    assert found == {
        "examples/math": 7,
        "rows_generated/math/brainstorm": 40,
        "rows_rejected/math/brainstorm": 28,
        "rows_generated/math/respond": 10,
        "rows_rejected/math/respond": 3,
    }


def test_stages_begin_and_end_and_other_events_hold_no_number() -> None:
    assert [each.value for each in scalars("router", {"message": "begins"})] == [1.0]
    ended = list(scalars("router", {"message": "finished", "seconds": 4.5}))
    assert [(each.name, each.value) for each in ended] == [("stage_running", 0.0), ("stage_seconds", 4.5)]
    assert not list(scalars("generate", {"message": "completions", "brainstorm.math": "3/9"}))


def test_tensorboard_has_every_series(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path), "run")
    with tracked(["tensorboard"], {}, run_dir) as emits:
        for emit in emits:
            emit("experts", **STEP)
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    written = file.read_bytes()
    assert b"loss/experts/math" in written and b"tokens_per_second/experts" in written


def test_a_tracker_that_cannot_work_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb needs the package wandb"), tracked(["wandb"], {}, RunDir("x", "run")):
        pass
    with pytest.raises(UserError, match="local folders only"), tracked(["tensorboard"], {}, RunDir("s3://x", "run")):
        pass


def test_a_tracker_that_fails_leaves_the_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tensorboardX

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no room")

    with tracked(["tensorboard"], {}, RunDir(str(tmp_path), "run")) as emits:
        monkeypatch.setattr(tensorboardX.SummaryWriter, "add_scalar", fail)
        for emit in emits * 2:
            emit("experts", **STEP)
    assert capsys.readouterr().err == "trackers: tensorboard gets nothing more, events.jsonl has all: no room\n"
    monkeypatch.setattr(tensorboardX, "SummaryWriter", fail)
    with (
        pytest.raises(UserError, match="tensorboard does not begin: no room"),
        tracked(["tensorboard"], {}, RunDir(str(tmp_path), "run")),
    ):
        pass


@pytest.mark.slow
def test_prometheus_finds_the_numbers() -> None:
    import ray

    from selfmoe_ray.run.ray_metrics import RayMetrics

    ray.init(address="local", num_cpus=1, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    try:
        RayMetrics("mine")("experts", **STEP)
        expected = "selfmoe_loss{"
        assert expected in read_metrics(expected) and 'learner="math"' in read_metrics(expected)
    finally:
        ray.shutdown()


def read_metrics(expected: str) -> str:
    """What the node offers, once the expected is among it."""
    import time
    import urllib.request

    import ray

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text: Any = ""
    for _ in range(90):
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
        if expected in text:
            break
        time.sleep(1)
    return text

"""A whole evaluation over a tiny run, and what is refused before an engine starts."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.commands.eval import evaluate_and_report, parser, read_options
from selfmoe_ray.config import RunConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.run import Options, evaluate_run
from selfmoe_ray.evaluation.tasks import TaskSource
from selfmoe_ray.mixture.merging import MergeConfig
from selfmoe_ray.run.run_dir import RunDir
from tests.evaluation.tiny_tasks import ROWS, write_tiny_tasks


@pytest.fixture
def options(config: RunConfig, run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a run that is finished up to its mixture."""
    monkeypatch.setenv("SELFMOE_RAY_CACHE", str(tmp_path / "cache"))
    run_dir.write_start(config.model_dump(mode="json"), {})
    given = vars(parser().parse_args(["--run", run_dir.storage.path()]))
    del given["exclude_leaked"]
    of_command = read_options(given)
    return vars(of_command) | {
        "systems": ["base", "random", "instance", "ties", "mixse"],
        "tasks": ["tiny_generation", "tiny_choice"],
        "source": TaskSource(task_files=str(write_tiny_tasks(tmp_path / "tasks"))),
        "dtype": "float32",
        "max_model_len": 512,
        "shard_size": 5,
    }


@pytest.mark.slow
def test_what_is_refused_before_any_work(options: dict[str, Any], run_dir: RunDir) -> None:
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "system": ({"systems": ["expert-maths"]}, "did you mean expert-math"),
        "run": ({"run": options["run"] + "-2"}, "is no run: it has no run.yaml"),
        "redo": ({"redo": ["uniform/tiny_choice"]}, "--redo: 'uniform/tiny_choice' is not asked for"),
        "weights": ({"merge": MergeConfig(weights=(1.0,))}, "1 given, but there are 2 experts"),
    }
    for change, message in wrong.values():
        with pytest.raises(UserError, match=message):
            evaluate_run(Options(**{**options, **change}))
    run_dir.storage.delete("mixse/manifest.json")
    with pytest.raises(UserError, match="mixse is not finished"):
        evaluate_run(Options(**options))


@pytest.mark.slow
def test_what_keeps_an_engine_from_starting_is_one_message(
    options: dict[str, Any], config: RunConfig, run_dir: RunDir
) -> None:
    gone = f"{config.root}/gone"
    run_dir.write_start({**config.model_dump(mode="json"), "base_model": gone}, {})
    with pytest.raises(UserError) as raised:
        evaluate_run(Options(**{**options, "systems": ["base"]}))
    message = str(getattr(raised.value, "cause", raised.value))
    assert gone in message and "Traceback" not in message


@pytest.mark.serving
@pytest.mark.timeout(1200)
def test_every_system_on_ray_and_nothing_twice(
    options: dict[str, Any], config: RunConfig, run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_and_report(Options(**options), exclude_leaked=False)
    first = capsys.readouterr().out
    leaked = run_dir.storage.read_json("eval/leaked.json")
    assert leaked == {"tiny_choice": [], "tiny_generation": []}
    for mixture in ("mixse", "merged", "variants/instance/mixse"):
        assert f"starting engines of {mixture}" in first
    rows = list(csv.DictReader(io.StringIO(run_dir.storage.read_bytes("report/tables/main.csv").decode())))
    assert [(row["benchmark"], row["system"]) for row in rows] == [
        (benchmark, system) for benchmark in ("tiny_choice", "tiny_generation") for system in options["systems"]
    ]
    assert [int(row["n"]) for row in rows] == [2 * ROWS] * 5 + [ROWS] * 5
    assert all((row["difference"] == "") == (row["system"] == "base") for row in rows)
    texts = [
        [sample["responses"] for sample in run_dir.storage.read_jsonl(f"eval/{system}/tiny_generation/samples.jsonl")]
        for system in options["systems"]
    ]
    assert all(one != other for place, one in enumerate(texts) for other in texts[:place])
    for benchmark, routing in run_dir.storage.read_json("eval/routing.json").items():
        assert routing["items"] == {"tiny_generation": ROWS, "tiny_choice": 8}[benchmark]
        assert routing["experts"] == config.domains
        assert sum(routing["top1_share"]) == pytest.approx(1) and len(routing["layers"]["mean_gate"]) == 2
    evaluate_and_report(Options(**options), exclude_leaked=False)
    again = capsys.readouterr().out
    assert "starting engines" not in again and again.split("\n\n")[-3:] == first.split("\n\n")[-3:]
    with pytest.raises(UserError, match=r"merge.density = 0.5.*asks for 0.1"):
        evaluate_run(Options(**{**options, "merge": MergeConfig(density=0.1)}))

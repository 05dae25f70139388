"""The order of stages, and what is skipped; the stages themselves are stand-ins that write manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.domains.domain import load_domains
from selfmoe_ray.errors import UserError
from selfmoe_ray.pipeline.run import prepare
from selfmoe_ray.pipeline.stages import Context, Stage, delete_from, missing, run_stages
from selfmoe_ray.run.events import silent
from selfmoe_ray.run.run_dir import RunDir


def make_stage(name: str, after: str | None, ran: list[str]) -> Stage:
    def expected(context: Context, folder: str) -> tuple[dict[str, Any], dict[str, str]]:
        inputs = {after: context.run_dir.manifest_hash(after)} if after else {}
        return {"seed": context.config.seed}, inputs

    def run(context: Context) -> None:
        ran.append(name)
        context.run_dir.storage.write_json(f"{name}-state/x.json", 1)
        context.run_dir.write_manifest(name, *expected(context, name), counts={}, seconds=0)

    return Stage(name, lambda _: [name], expected, run, leaves=(f"{name}-state",))


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def stages(ran: list[str]) -> list[Stage]:
    return [make_stage("one", None, ran), make_stage("two", "one", ran), make_stage("three", "two", ran)]


def make_context(folder: Path, **settings: Any) -> Context:
    config = parse_config({"domains": ["math"], **settings})
    base = BaseModel("embedded", "nowhere", "hash")
    return Context(config, load_domains(config.domains), base, RunDir(str(folder), "run"), silent)


def names(stages: list[Stage]) -> list[str]:
    return [stage.name for stage in stages]


def test_stages_run_once_and_in_order(tmp_path: Path, stages: list[Stage], ran: list[str]) -> None:
    context = make_context(tmp_path)
    assert names(missing(stages, context, last="two")) == ["one", "two"]
    run_stages(missing(stages, context, last="two"), context)
    assert names(missing(stages, context)) == ["three"]
    run_stages(missing(stages, context), context)
    assert missing(stages, context) == [] and ran == ["one", "two", "three"]


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, stages: list[Stage], ran: list[str]) -> None:
    def crash(_: Context) -> None:
        raise RuntimeError

    context = make_context(tmp_path)
    broken = Stage("two", stages[1].folders, stages[1].expected, crash)
    with pytest.raises(RuntimeError):
        run_stages([stages[0], broken, stages[2]], context)
    run_stages(missing(stages, context), context)
    assert ran == ["one", "two", "three"]


def test_another_setting_stops_before_any_work(tmp_path: Path, stages: list[Stage], ran: list[str]) -> None:
    run_stages(stages, make_context(tmp_path))
    with pytest.raises(UserError, match=r"one was made with seed = 0; this config asks for 1[^$]*--redo one"):
        missing(stages, make_context(tmp_path, seed=1))


def test_redo_deletes_a_stage_and_those_after_it(tmp_path: Path, stages: list[Stage], ran: list[str]) -> None:
    context = make_context(tmp_path)
    run_stages(stages, context)
    delete_from(stages, context, "two")
    assert context.run_dir.storage.exists("one-state/x.json")
    assert not context.run_dir.storage.exists("two-state/x.json")
    assert names(missing(stages, context)) == ["two", "three"]


def test_prepare_refuses_what_cannot_work(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path), "run")
    few = RunConfig(domains=["math"], generation={"seeds_per_domain": 4})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="domain 'math': 4 seeds to show, but a prompt shows 5"):
        prepare(few, run_dir, silent)
    many = RunConfig(domains=["math"], mixture={"num_experts_per_tok": 2})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="num_experts_per_tok: 2 asked, but 1 domain"):
        prepare(many, run_dir, silent)


def test_prepare_warns_of_seeds_that_lack_the_domains_shape(tmp_path: Path, tiny_model_dir: Any) -> None:
    folder = tmp_path / "riddles"
    folder.mkdir()
    (folder / "domain.yaml").write_text(
        "name: riddles\ncovers: Riddles.\nrequirements: [One riddle.]\nanswer: Say it.\nshape: multiple_choice\n"
    )
    rows = [f'{{"instruction": "Riddle number {n}, what am I?", "input": "", "output": "A"}}' for n in range(5)]
    (folder / "seeds.jsonl").write_text("\n".join(rows))
    said: list[str] = []
    config = RunConfig(domains=[str(folder)], base_model=str(tiny_model_dir("llama")))
    prepare(config, RunDir(str(tmp_path), "run"), lambda kind, **fields: said.append(fields["message"]))
    assert said and said[0].startswith("warning: 5 of 5 seeds would not pass as generated rows")

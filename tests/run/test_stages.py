"""The order of stages, what is skipped, what is refused; the stages are stand-ins that write a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.run.events import silent
from selfmoe_ray.run.run_dir import RunDir, VariantDir
from selfmoe_ray.run.stages import STAGES, Made, Making, Product, Stage, begin, delete_from, missing, run_stages


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path), "run")


@pytest.fixture
def ran() -> list[str]:
    return []


def make_stages(run_dir: RunDir, ran: list[str], seed: int = 0) -> list[Stage]:
    def make_stage(name: str, *after: str) -> Stage:
        def make(todo: Sequence[Product]) -> Making:
            run_dir.storage.write_json(f"{name}-state/x.json", 1)
            for product in todo:
                ran.append(product.folder)
                yield Made(product.folder, {"made": 1}, seconds=1.5)

        gives = [Product(f"{name}/{half}", {"seed": seed}, after, redo=name) for half in ("a", "b")]
        return Stage(name, gives, make, leaves=(f"{name}-state",))

    return [make_stage("one"), make_stage("two", "one/a", "one/b"), make_stage("three", "two/b")]


def names(stages: list[Stage]) -> list[str]:
    return [stage.name for stage in stages]


def test_stages_run_once_and_in_order(run_dir: RunDir, ran: list[str]) -> None:
    stages = make_stages(run_dir, ran)
    first = missing(stages, run_dir, until="two")
    assert names(first) == ["one", "two"]
    run_stages(first, run_dir, silent)
    assert names(missing(stages, run_dir)) == ["three"]
    run_stages(missing(stages, run_dir), run_dir, silent)
    assert missing(stages, run_dir) == []
    assert ran == ["one/a", "one/b", "two/a", "two/b", "three/a", "three/b"]
    run_stages(stages, run_dir, silent)
    assert len(ran) == 6
    manifest = run_dir.read_manifest("two/a")
    assert manifest is not None and manifest["counts"] == {"made": 1} and manifest["seconds"] == 1.5
    assert manifest["inputs"] == {folder: run_dir.manifest_hash(folder) for folder in ("one/a", "one/b")}


def test_a_stopped_run_goes_on_where_it_was(run_dir: RunDir, ran: list[str]) -> None:
    """What a stage has made before it is stopped is finished, and what it holds is let go."""
    held: list[str] = []

    def crash(todo: Sequence[Product]) -> Making:
        held.append("engines")
        try:
            yield Made(todo[0].folder, {})
            raise RuntimeError
        finally:
            held.clear()

    stages = make_stages(run_dir, ran)
    with pytest.raises(RuntimeError):
        run_stages([stages[0], replace(stages[1], make=crash), stages[2]], run_dir, silent)
    assert not held and names(missing(stages, run_dir)) == ["two", "three"]
    run_stages(missing(stages, run_dir), run_dir, silent)
    assert ran == ["one/a", "one/b", "two/b", "three/a", "three/b"]


def test_a_stage_lets_go_what_it_holds_where_its_manifest_cannot_be_written(run_dir: RunDir) -> None:
    held: list[str] = []

    def make(todo: Sequence[Product]) -> Making:
        held.append("engines")
        try:
            yield Made("another", {})
        finally:
            held.clear()

    with pytest.raises(KeyError):
        run_stages([Stage("one", [Product("one", {}, (), "one")], make)], run_dir, silent)
    assert not held


def test_another_setting_stops_before_any_work(run_dir: RunDir, ran: list[str]) -> None:
    run_stages(make_stages(run_dir, ran), run_dir, silent)
    with pytest.raises(UserError, match=r"one/a was made with seed = 0; this config asks for 1[^$]*--redo one"):
        missing(make_stages(run_dir, ran, seed=1), run_dir)


def test_a_stage_without_its_inputs_is_refused_before_it_starts(run_dir: RunDir, ran: list[str]) -> None:
    with pytest.raises(UserError, match="one/a is not finished"):
        run_stages(make_stages(run_dir, ran)[1:], run_dir, silent)
    assert ran == []


def test_redo_deletes_a_stage_and_those_after_it(run_dir: RunDir, ran: list[str]) -> None:
    stages = make_stages(run_dir, ran)
    run_stages(stages, run_dir, silent)
    delete_from(stages, run_dir, "two")
    assert run_dir.storage.exists("one-state/x.json")
    assert not run_dir.storage.exists("two-state/x.json")
    assert names(missing(stages, run_dir)) == ["two", "three"]


def test_other_settings_stop_with_the_field_and_three_ways_out(run_dir: RunDir) -> None:
    def router(epochs: int) -> list[Product]:
        return [Product("router", {"router": {"epochs": epochs, "init": "labels"}}, ("mixse",), "router")]

    run_dir.write_manifest("mixse", {"rank": 1}, {}, {}, 0)
    run_dir.write_manifest("router", router(1)[0].settings, {"mixse": run_dir.manifest_hash("mixse")}, {}, 0)
    assert begin(router(1), run_dir) == []
    with pytest.raises(UserError) as caught:
        begin(router(2), run_dir)
    message = str(caught.value)
    assert "router was made with router.epochs = 1; this config asks for 2" in message
    assert "--redo router" in message and "choose another run_name" in message
    run_dir.write_manifest("mixse", {"rank": 2}, {}, {}, 0)
    with pytest.raises(UserError, match=r"made with mixse = '\w+'; this config asks for '\w+'"):
        begin(router(1), run_dir)


def begun(**settings: Any) -> list[Product]:
    return [Product("data/math", settings, (), "generate", begun=settings, grows="limit")]


def test_unfinished_work_made_otherwise_is_refused(run_dir: RunDir) -> None:
    assert begin(begun(seed=0, limit=None), run_dir) == begin(begun(seed=0, limit=None), run_dir)
    with pytest.raises(UserError, match="made with seed = 0; this config asks for 1"):
        begin(begun(seed=1, limit=None), run_dir)


@pytest.mark.parametrize("is_finished", [False, True])
def test_what_may_grow_is_taken_up_and_never_shrinks(run_dir: RunDir, is_finished: bool) -> None:
    few, more, every = (begun(seed=0, limit=limit) for limit in (4, 8, None))
    for fewer, grown in ((few, more), (more, every)):
        assert begin(fewer, run_dir) == fewer
        if is_finished:
            run_dir.write_manifest("data/math", fewer[0].settings, {}, {}, 0)
        with pytest.raises(UserError, match="seed = 0"):
            begin(begun(seed=1, limit=fewer[0].settings["limit"]), run_dir)
        assert begin(grown, run_dir) == grown and run_dir.read_manifest("data/math") is None
        with pytest.raises(UserError, match="limit = "):
            begin(fewer, run_dir)


def test_every_stage_has_its_folders_and_its_word_for_redo(run_dir: RunDir) -> None:
    folders = {stage: run_dir.folders(stage, ["law", "math"]) for stage in STAGES}
    assert folders["generate"] == ["data/law", "data/math"] and folders["experts"] == ["experts/law", "experts/math"]
    alone = [run_dir.ROUTER, run_dir.MIXSE, run_dir.MEASURE, run_dir.REPORT]
    assert [folder for stage in STAGES[2:] for folder in folders[stage]] == alone
    assert run_dir.redo("router") == "router"
    assert VariantDir(run_dir, "joint", shares_experts=False).redo("router") == "variants/joint"

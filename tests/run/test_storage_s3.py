"""Everything that a run keeps, on a real S3 protocol: moto's server on this machine."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.checks import mark_of_driver, write_probe
from selfmoe_ray.run import lease, storage
from selfmoe_ray.run.records import Completion, Example, Reject, Seed
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Product, begin
from selfmoe_ray.run.storage import Storage


@pytest.fixture
def root(s3_root: str) -> str:
    return s3_root


@pytest.fixture
def run_dir(root: str) -> RunDir:
    return RunDir(root, "run")


def test_files_and_folders(root: str) -> None:
    there = Storage(f"{root}/run")
    there.write_json("a/b.json", {"é": [1, 2]})
    there.write_jsonl("a/c.jsonl", [{"x": 1}, {"x": 2}])
    there.write_json("a/d/e.json", {})
    assert there.read_json("a/b.json") == {"é": [1, 2]} and there.read_jsonl("a/c.jsonl") == [{"x": 1}, {"x": 2}]
    assert there.list_files("a") == ["a/b.json", "a/c.jsonl"] and there.list_folders("a") == ["a/d"]
    assert there.list_files("none") == [] and there.list_folders("none") == []
    with pytest.raises(FileNotFoundError):
        there.read_bytes("a/none")
    there.delete("a/b.json")
    there.delete("a")
    there.delete("a")
    assert not there.exists("a") and not there.exists("a/c.jsonl")


def test_folders_of_libraries(root: str) -> None:
    there = Storage(root)
    for content in ("old", "new"):
        with there.local_folder_to_write("experts/math") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / content).write_text(content)
    with there.local_folder_to_read("experts/math") as folder:
        assert [path.name for path in (folder / "deep").iterdir()] == ["new"]
    with pytest.raises(RuntimeError), there.local_folder_to_write("experts/math"):
        raise RuntimeError
    assert there.read_bytes("experts/math/deep/new") == b"new"


def test_a_file_that_would_leave_its_folder_is_refused(root: str) -> None:
    import boto3

    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    client = boto3.client("s3", region_name="us-east-1")
    client.put_object(Bucket=bucket, Key=f"{prefix}/mixse/config.json", Body=b"{}")
    client.put_object(Bucket=bucket, Key=f"{prefix}/mixse/../../evil", Body=b"")
    with pytest.raises(UserError, match="would be written outside"), Storage(root).local_folder_to_read("mixse"):
        pass


def test_events_are_appended_over_several_runs(root: str) -> None:
    there = Storage(root)
    for number in range(2):
        with there.open_append("events.jsonl") as append:
            append(f"{number}\n")
    assert there.read_bytes("events.jsonl") == b"0\n1\n"


def test_a_run_directory(run_dir: RunDir) -> None:
    completion = Completion("math/0/0/0", "math", "brainstorm", "text", "stop", 3, 4, "")
    run_dir.write_part("math", "brainstorm", "000-0000", [completion])
    assert run_dir.read_parts("math", "brainstorm") == {"000-0000": [completion]}
    example = Example("math/0/0/0", "math", "Say it.", "", "It.")
    run_dir.write_examples("math", [example], [Reject("math/0/0/1", "math", "respond", "empty", "")])
    assert run_dir.read_examples("math") == [example] and run_dir.read_rejects("math")[0].reason == "empty"
    run_dir.write_seeds("math", [Seed("Say it.", "", "It.")], [])
    assert len(run_dir.read_seeds("math", held_out=False)) == 1
    product = Product("data/math", {"a": 1}, (), redo="generate", begun={"a": 1})
    assert begin([product], run_dir) == [product]
    run_dir.write_manifest("data/math", {"a": 1}, {}, {}, 1.0)
    assert begin([product], run_dir) == []
    with pytest.raises(UserError, match=r"s3://.*was made with a = 1"):
        begin([replace(product, settings={"a": 2})], run_dir)


def test_one_job_holds_a_run(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.01)
    with lease.held(run_dir.storage), pytest.raises(UserError), lease.held(run_dir.storage):
        pass
    assert not run_dir.storage.exists(lease.LOCK)


def test_a_probe_finds_the_drivers_mark(root: str) -> None:
    with mark_of_driver(root) as mark:
        assert write_probe(root, mark) == ""
    assert write_probe(root, mark).startswith("not the folder")
    assert write_probe("s3://no-such-bucket-here/runs") != ""


def test_a_mixture_is_loaded_from_there(root: str, tiny_model_dir: Callable[..., Path]) -> None:
    from selfmoe_ray.base_model import resolve
    from selfmoe_ray.config import RunConfig
    from selfmoe_ray.mixture.checkpoint import load_mixse
    from selfmoe_ray.mixture.spec import MixtureSpec
    from selfmoe_ray.serving.server import local_checkpoint

    base = resolve(str(tiny_model_dir()))
    there = Storage(f"{root}/run")
    spec = MixtureSpec.uniform(["ant", "bee"], RunConfig().mixture, base.value, base.content_hash)
    make_mixse(there, spec, base)
    with local_checkpoint(f"{root}/run/mixse") as folder:
        assert load_mixse(folder).spec.experts == ("ant", "bee")


def make_mixse(there: Storage, spec: Any, base: Any) -> None:
    """The `mixse` folder of an untrained mixture, by way of its experts' and router's folders."""
    from selfmoe_ray.base_model import load_model
    from selfmoe_ray.mixture.checkpoint import assemble_mixse, save_expert, save_router
    from selfmoe_ray.mixture.model import attach

    model = attach(load_model(base.path, "float32"), spec)
    for index, name in enumerate(spec.experts):
        with there.local_folder_to_write(f"experts/{name}") as folder:
            save_expert(model, index, folder)
    with there.local_folder_to_write("router") as folder:
        save_router(model, folder)
    read = there.local_folder_to_read
    with (
        read("experts/ant") as ant,
        read("experts/bee") as bee,
        read("router") as router,
        there.local_folder_to_write("mixse") as folder,
    ):
        assemble_mixse(spec, {"ant": ant, "bee": bee}, router, folder, base)


def test_storage_that_fails_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_dir: RunDir
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waited.append)
    for there in (Storage(str(tmp_path)), run_dir.storage):
        name = "_write_local" if there.is_local else "_write_remote"
        write, failures = getattr(there, name), [OSError(errno.EIO, "gone"), OSError("connection reset")]

        def fails(name: str, data: bytes, write: Any = write, failures: list[OSError] = failures) -> None:
            if failures:
                raise failures.pop()
            write(name, data)

        monkeypatch.setattr(there, name, fails)
        there.write_bytes("f", b"1")
        assert there.read_bytes("f") == b"1"
        failures += [OSError(errno.EIO, "gone")] * 9
        with pytest.raises(UserError, match=r"cannot write .*/f: gone"):
            there.write_bytes("f", b"2")
    assert waited == [1.0, 4.0, *storage.RETRY_SECONDS] * 2

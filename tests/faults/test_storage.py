"""A run on an object store that goes away for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.conftest import DOMAINS, Run, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
AWAY_SECONDS = 8


def test_a_run_on_an_object_store_waits_for_it_and_is_served_from_it(
    make_run: Callable[[str], Run], s3_root: str, s3_server: Any
) -> None:
    from selfmoe_ray.mixture.checkpoint import read_spec
    from selfmoe_ray.serving.server import local_checkpoint

    run = make_run("remote")
    run.config["root"] = s3_root
    storage = run.run_dir.storage
    job = run.start("pipeline")

    def has_parts() -> bool:
        return any(storage.list_files(f"data/{name}/brainstorm") for name in DOMAINS)

    wait_until(lambda: has_parts() or job.poll() is not None, 240, "a first part")
    s3_server.go()
    time.sleep(AWAY_SECONDS)
    s3_server.come()
    said = run.finish(job, 600)
    assert job.returncode == 0, said[-6000:]
    assert run.examples() and storage.exists("report/index.html")
    assert "<html" in storage.read_bytes("report/index.html").decode()
    assert not storage.list_folders("checkpoints"), "resumable state of finished work"
    with local_checkpoint(storage.path("mixse")) as folder:
        assert read_spec(folder).experts == DOMAINS

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.machines import ray_session
from selfmoe_ray.machines.ray_session import check_root


def test_a_relative_root_is_refused_only_in_rays_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_root("runs")
    copied = tmp_path / "_ray_pkg_0123"
    copied.mkdir()
    monkeypatch.chdir(copied)
    for root in ("/shared/runs", "s3://bucket/runs", "~/runs"):
        check_root(root)
    with pytest.raises(UserError, match="root: 'runs' is relative"):
        check_root("runs")


def start_sleeper() -> int:
    """A process that does not end with its worker."""
    return subprocess.Popen(["sleep", "600"], start_new_session=True, env=os.environ).pid


@pytest.mark.slow
def test_no_process_of_a_local_cluster_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_session, "_GRACE_SECONDS", 1)
    with ray_session.ray_session():
        pid = ray.get(ray.remote(start_sleeper).options(num_cpus=0).remote())
        assert Path(f"/proc/{pid}").exists()
        assert ray_session.CLUSTER not in os.environ
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_text()

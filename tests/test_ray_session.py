from __future__ import annotations

from pathlib import Path

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.ray_session import check_root


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

"""How the CPU kernels are built."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from selfmoe_ray.engine.kernels import build


def test_without_a_compiler_the_reason_is_logged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SELFMOE_RAY_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.load_library.__wrapped__() is None
    assert "there is no C++ compiler (no-such-compiler)" in caplog.text


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiler_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "kernels.cpp"
    source.write_text("this is no C++")
    monkeypatch.setattr(build, "SOURCES", (*build.SOURCES, source))
    monkeypatch.setenv("SELFMOE_RAY_CACHE", str(tmp_path / "cache"))
    assert build.load_library.__wrapped__() is None
    assert "kernels.cpp" in caplog.text
    assert [path.suffix for path in (tmp_path / "cache" / "kernels").iterdir()] == [".lock"]

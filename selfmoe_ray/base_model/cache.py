"""What is made once per content on a machine: converted models, compiled kernels, folders of task data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def cache_root() -> Path:
    """Where they are kept: $SELFMOE_RAY_CACHE, else selfmoe_ray below $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("SELFMOE_RAY_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfmoe_ray"


def cached(key: str, make: Callable[[Path], None], is_intact: Callable[[Path], bool] = Path.exists) -> Path:
    """The file or folder of the cache that `make` writes to the path that it is given, made on first use.

    key: its path below the root, which names all that the content depends on. is_intact: whether what lies there can
    be used; else it is made anew. Processes that ask at once wait for the one that makes it; what fails leaves
    nothing. Raises OSError where the cache cannot be written, and what `make` raises.
    """
    from filelock import FileLock

    path = cache_root() / key
    if is_intact(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not is_intact(path):
            _make_atomically(path, make)
    return path


def _make_atomically(path: Path, make: Callable[[Path], None]) -> None:
    # Holding the lock means that no other process writes here: what lies there is a dead one's.
    partial = path.with_name(f"{path.name}.partial")
    _remove(partial)
    _remove(path)
    try:
        make(partial)
        os.replace(partial, path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

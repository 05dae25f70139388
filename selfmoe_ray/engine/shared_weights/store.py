"""Tensors in files that processes map read-only: written once, published whole, removed after the last user.

    <root>/<name>/weights      the tensors' bytes; every user holds a shared flock on it
    <root>/<name>/index.json   what it must be: key, size, checksum
    <root>/<name>.lock         held while the entry is written, opened or removed
    <root>/<name>.tmp/         an entry being written

Locks are the kernel's, so a process that was killed leaves none behind, and what is not locked is
nobody's: the next process to open the store removes it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import mmap
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from selfmoe_ray.engine.shared_weights.layout import Layout
from selfmoe_ray.errors import UserError

logger = logging.getLogger(__name__)

WEIGHTS = "weights"
INDEX = "index.json"
Fill = Callable[[dict[str, Tensor]], None]


@dataclass(frozen=True)
class SharedTensors:
    """An entry in use: read-only tensors by name (writing to one ends the process), and who made it."""

    tensors: dict[str, Tensor]
    created: bool
    file: BinaryIO
    store: WeightStore

    def release(self) -> None:
        """Give the entry up; it is removed if nobody else uses it. The tensors stay valid in this process."""
        fcntl.flock(self.file, fcntl.LOCK_UN)
        self.store.sweep()


class WeightStore:
    """The entries below a directory, which is made if missing and must be this user's own."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = root.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
            raise UserError(f"{root}: shared weights need a directory of this user's own that no other can write to")

    def open(self, key: Mapping[str, str], layout: Layout, fill: Fill) -> SharedTensors:
        """Map the entry of a key and layout. The first to ask makes it while the others wait.

        fill: writes every value into the tensors of the layout, which it gets writable; where it
        raises, no entry is left. A damaged entry is made anew; who has mapped the old one keeps it.
        Raises UserError where there is no room for it.
        """
        self.sweep()
        name = layout.entry_name(key)
        with self._lock(name):
            created = not self._intact(name, key)
            if created:
                self._make(name, key, layout, fill)
            file = (self.root / name / WEIGHTS).open("rb")
            # The mapping has this lock too: it duplicates the descriptor.
            fcntl.flock(file, fcntl.LOCK_SH)
        return SharedTensors(layout.views(_map(file)), created, file, self)

    def sweep(self) -> None:
        """Remove entries without a user, and what writers left that were killed."""
        for name in {path.name.partition(".")[0] for path in self.root.iterdir()}:
            try:
                with self._lock(name, wait=False):
                    shutil.rmtree(self.root / f"{name}.tmp", ignore_errors=True)
                    if not self._used(name):
                        shutil.rmtree(self.root / name, ignore_errors=True)
                        (self.root / f"{name}.lock").unlink()
            except BlockingIOError:
                # Someone is writing or opening it.
                continue

    @contextmanager
    def _lock(self, name: str, wait: bool = True) -> Iterator[None]:
        path = self.root / f"{name}.lock"
        held = False
        while not held:
            with path.open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                # The former holder may have removed the file: then a lock on it excludes nobody.
                held = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
                if held:
                    yield

    def _used(self, name: str) -> bool:
        try:
            with (self.root / name / WEIGHTS).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _intact(self, name: str, key: Mapping[str, str]) -> bool:
        folder = self.root / name
        if not folder.exists():
            return False
        try:
            with (folder / WEIGHTS).open("rb") as file, _map(file) as content:
                intact = json.loads((folder / INDEX).read_text()) == _index(key, content)
        except (OSError, ValueError):
            intact = False
        if not intact:
            logger.warning("Shared weights %s are damaged; they are loaded again.", folder)
        return intact

    def _make(self, name: str, key: Mapping[str, str], layout: Layout, fill: Fill) -> None:
        folder, made = self.root / name, self.root / f"{name}.tmp"
        shutil.rmtree(folder, ignore_errors=True)
        made.mkdir()
        try:
            with (made / WEIGHTS).open("w+b") as file:
                self._reserve(file, layout.nbytes)
                content = _map(file, mmap.PROT_READ | mmap.PROT_WRITE)
                fill(layout.views(content))
                (made / INDEX).write_text(json.dumps(_index(key, content)))
            (made / WEIGHTS).chmod(0o400)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _reserve(self, file: BinaryIO, nbytes: int) -> None:
        """Take the room now: running out of it later, in a mapping, would end the process."""
        try:
            os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EFBIG):
                raise
            free = shutil.disk_usage(self.root).free
            raise UserError(
                f"{self.root}: the base's weights need {nbytes / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free; "
                "enlarge it (a container's /dev/shm has a size of its own), name another directory, or load unshared"
            ) from None


def _map(file: BinaryIO, access: int = mmap.PROT_READ) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=access)


def _index(key: Mapping[str, str], content: mmap.mmap) -> dict[str, object]:
    return {"key": dict(key), "nbytes": len(content), "crc32": zlib.crc32(content)}

"""Files of a run on any root: a local or NFS path, s3:// or gs://, through pyarrow's filesystems."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


REWRITE_SECONDS = 10.0
# Between the tries of a write that fails.
RETRY_SECONDS = (1.0, 4.0, 16.0)
# What waiting does not mend.
LASTING = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG,
}  # fmt: skip
LASTING_REMOTE = ("NO_SUCH_BUCKET", "ACCESS_DENIED")


def _is_lasting(error: OSError) -> bool:
    return error.errno in LASTING or any(name in str(error) for name in LASTING_REMOTE)


@functools.lru_cache
def _open(root: str) -> Any:
    """pyarrow's filesystem of what lies below a path or URI; opening one may ask the network for its region."""
    from pyarrow import fs

    if "://" not in root:
        return fs.SubTreeFileSystem(root, fs.LocalFileSystem())
    try:
        filesystem, base = fs.FileSystem.from_uri(root)
    except (ValueError, OSError) as error:
        raise UserError(f"root: cannot open {root!r} ({error}); give a path, s3:// or gs://") from None
    return fs.SubTreeFileSystem(base, filesystem)


class Storage:
    """A folder on some filesystem; names inside it are relative, with forward slashes.

    Every write is atomic: a temporary name and a rename locally, one put on object stores.
    """

    def __init__(self, root: str):
        self.is_local = "://" not in root
        self.root = str(Path(root).expanduser().absolute()) if self.is_local else root.rstrip("/")

    @property
    def _files(self) -> Any:
        return _open(self.root)

    def path(self, name: str = "") -> str:
        """The full path or URI of a name."""
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str) -> bool:
        """Whether a file or folder of this name exists."""
        return self._files.get_file_info(name).type.name != "NotFound"

    def list_files(self, folder: str) -> list[str]:
        """Sorted names (relative to the root) of the files directly in a folder; [] where it is missing."""
        return self._list(folder, files=True)

    def list_folders(self, folder: str) -> list[str]:
        """Sorted names (relative to the root) of the folders directly in a folder; [] where it is missing."""
        return self._list(folder, files=False)

    def _list(self, folder: str, files: bool) -> list[str]:
        from pyarrow import fs

        infos = self._files.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        names = (info.base_name for info in infos if info.is_file == files)
        return sorted(f"{folder}/{name}" for name in names if not name.startswith(".tmp-"))

    def read_bytes(self, name: str) -> bytes:
        """A file's content; FileNotFoundError names it where it is missing."""
        with self._files.open_input_stream(name) as stream:
            return stream.read()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically, making its folder. Storage that fails as if for a moment is tried again.

        Raises UserError where it cannot be written.
        """
        write = self._write_local if self.is_local else self._write_remote
        for delay in (*RETRY_SECONDS, None):
            try:
                return write(name, data)
            except OSError as error:
                if delay is None or _is_lasting(error):
                    raise UserError(
                        f"cannot write {self.path(name)}: {error.strerror or error}. Make room or choose another "
                        "`root`; what is already written is kept, run again to go on."
                    ) from error
                time.sleep(delay)

    def _write_local(self, name: str, data: bytes) -> None:
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".tmp-{uuid.uuid4().hex}"
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _write_remote(self, name: str, data: bytes) -> None:
        with self._files.open_output_stream(name) as stream:
            stream.write(data)

    @contextmanager
    def open_append(self, name: str) -> Iterator[Callable[[str], None]]:
        """Yields a function that adds text to a file. A local file has each text at once; an object
        store, which cannot append, has the whole anew every few seconds and at the end."""
        if self.is_local:
            path = Path(self.path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", buffering=1) as stream:

                def write(text: str) -> None:
                    stream.write(text)

                yield write
            return
        texts = [self.read_bytes(name).decode()] if self.exists(name) else []
        written = time.monotonic()

        def append(text: str) -> None:
            nonlocal written
            texts.append(text)
            if time.monotonic() - written > REWRITE_SECONDS:
                self.write_bytes(name, "".join(texts).encode())
                written = time.monotonic()

        try:
            yield append
        finally:
            self.write_bytes(name, "".join(texts).encode())

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing happens where it is missing."""
        kind = self._files.get_file_info(name).type.name
        if kind == "Directory":
            self._files.delete_dir(name)
        elif kind == "File":
            self._files.delete_file(name)

    def read_json(self, name: str) -> Any:
        """A JSON file's value."""
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as indented JSON, atomically."""
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file that this package wrote."""
        return [json.loads(line) for line in self.read_bytes(name).decode().split("\n") if line.strip()]

    def write_jsonl(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write one JSON object a line, atomically."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.write_bytes(name, text.encode())

    def read_table(self, name: str) -> pa.Table:
        """A Parquet file as an Arrow table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        return pq.read_table(pa.BufferReader(self.read_bytes(name)))

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write an Arrow table as one Parquet file, atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self.write_bytes(name, sink.getvalue().to_pybytes())

    @contextmanager
    def local_folder_to_write(self, name: str) -> Iterator[Path]:
        """A fresh local folder for libraries that write files themselves.

        When the block ends without an error its content replaces the folder `name`.
        """
        parent = Path(self.path(name)).parent if self.is_local else Path(tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
        try:
            yield temporary
            self.delete(name)
            if self.is_local:
                temporary.chmod(0o755)
                os.replace(temporary, self.path(name))
            else:
                for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
                    self.write_bytes(f"{name}/{file.relative_to(temporary).as_posix()}", file.read_bytes())
        except OSError as error:
            raise UserError(f"cannot write {self.path(name)}: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def local_folder_to_read(self, name: str) -> Iterator[Path]:
        """The folder `name` as a local path: itself on a local root, else a temporary download."""
        if self.is_local:
            yield Path(self.path(name))
            return
        from pyarrow import fs

        for info in self._files.get_file_info(fs.FileSelector(name, recursive=True)):
            if ".." in info.path.split("/"):
                raise UserError(f"{self.path(name)}: refused, as its file {info.path} would be written outside of it")
        temporary = Path(tempfile.mkdtemp(prefix="selfmoe-"))
        try:
            fs.copy_files(name, str(temporary), source_filesystem=self._files)
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

"""Runs a Python program that a model wrote where it can harm nothing.

Linux only, with or without root, also inside a container: Landlock narrows the files, seccomp the
system calls, resource limits the rest (see child.py). Where one of them is missing the program is
not run. Two things it can still do: ask whether a path exists whose name it guesses, and search the
interpreter's memory for the way to claim that it ended well; `passed` is a score, not a proof.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from selfmoe_ray.errors import UserError

_CHILD = Path(__file__).with_name("child.py")
# What Python and compiled packages read beside the interpreter's own folders.
_SYSTEM_FILES = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo",
    "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom",
)  # fmt: skip
_START_SECONDS = 60.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class ProgramLimits:
    """What one program may use. It is always a single process with a single thread, without network."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    """Address space, as RLIMIT_AS counts it."""
    file_bytes: int = 1 << 20
    """Of a single file."""
    folder_bytes: int = 16 << 20
    folder_entries: int = 256
    output_bytes: int = 64 << 10
    """Of stdout and stderr together; what comes after is thrown away."""


@dataclass(frozen=True)
class Outcome:
    """status: "passed" (it ran to its end), "failed", "timed out" or "stopped" (a limit); detail says why."""

    status: str
    detail: str
    output: str

    @property
    def passed(self) -> bool:
        """Whether the program ran to its end."""
        return self.status == "passed"


def run_program(program: str, *, run_model_written_code: bool, limits: ProgramLimits | None = None) -> Outcome:
    """Run a Python program in a process of its own and wait for its end.

    It sees an empty environment, a fresh current folder, where alone it can write, and the
    interpreter's installed packages. It passes when its last line is reached without an exception.
    Raises UserError unless `run_model_written_code` says that this is wanted, and where this
    machine lacks what the sandbox is made of.
    """
    if not run_model_written_code:
        raise UserError(
            "this runs Python programs that a model wrote, in a sandbox on this machine; "
            "set run_model_written_code=True to allow it"
        )
    if not sys.platform.startswith("linux"):
        raise UserError(f"the sandbox for model-written code needs Linux, found {sys.platform}")
    limits = limits or ProgramLimits()
    token = secrets.token_hex(16)
    request = {"program": program, "token": token, "readable": _readable(), "parent": os.getpid(), **asdict(limits)}
    with _fresh_folder() as folder, _start(request, folder) as (process, verdict):
        return _Watch(process, verdict, folder, limits, token).outcome()


def _readable() -> list[str]:
    return [path for path in (sys.prefix, sys.base_prefix, *_SYSTEM_FILES) if os.path.exists(path)]


@contextmanager
def _fresh_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="program-")
    try:
        yield folder
    finally:
        # shutil.rmtree recurses, and a program can nest folders deeper than Python's stack.
        subprocess.run(["rm", "-rf", "--", folder], check=True)


@contextmanager
def _start(request: dict[str, object], folder: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The child and the read end of the pipe on which it says "ready" and, at its end, the token."""
    verdict_read, verdict_write = os.pipe()
    # One thread, because numerical libraries otherwise start a pool when imported.
    environment = {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    with open(verdict_read, "rb", buffering=0), _as_file(json.dumps(request | {"verdict": verdict_write})) as stdin:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", str(_CHILD)],
                stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder,
                env=environment, pass_fds=[verdict_write], start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(verdict_write)
        with process:
            try:
                yield process, verdict_read
            finally:
                process.kill()


@contextmanager
def _as_file(text: str) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


class _Watch:
    """Reads what a child says and stops it at the limits that the kernel does not keep."""

    def __init__(self, process: subprocess.Popen[bytes], verdict: int, folder: str, limits: ProgramLimits, token: str):
        self._process, self._folder, self._limits, self._token = process, folder, limits, token
        assert process.stdout is not None
        self._output_fd, self._verdict_fd = process.stdout.fileno(), verdict
        self._output, self._verdict = b"", b""

    def outcome(self) -> Outcome:
        broken_limit = self._follow()
        output = self._output.decode(errors="replace")
        if not self._ready:
            why = output.strip() or "the interpreter does not start"
            raise UserError(f"the sandbox for model-written code cannot be set up on this machine: {why}")
        status, detail = broken_limit or self._ending(output)
        return Outcome(status, detail, output)

    @property
    def _ready(self) -> bool:
        return self._verdict.startswith(b"ready\n")

    def _follow(self) -> tuple[str, str] | None:
        """Read until the child is gone; status and detail where it broke a limit."""
        deadline = time.monotonic() + _START_SECONDS
        started = False
        with selectors.DefaultSelector() as selector:
            for descriptor in (self._output_fd, self._verdict_fd):
                selector.register(descriptor, selectors.EVENT_READ)
            # A program may close its pipes and go on; a dead one may have left something in them.
            while selector.get_map() or self._process.poll() is None:
                for key, _ in selector.select(_POLL_SECONDS):
                    if not self._read(key.fd):
                        selector.unregister(key.fd)
                if self._ready and not started:
                    started, deadline = True, time.monotonic() + self._limits.wall_seconds
                if time.monotonic() > deadline:
                    return "timed out", f"not done after {self._limits.wall_seconds:g} seconds"
                if started and (excess := _excess(self._folder, self._limits)):
                    return "stopped", excess
        return None

    def _ending(self, output: str) -> tuple[str, str]:
        """Status and detail of a child that ended by itself."""
        exit_code = self._process.wait()
        if self._verdict == f"ready\n{self._token}\n".encode():
            return "passed", ""
        if exit_code == -signal.SIGXCPU:
            return "timed out", f"more than {self._limits.cpu_seconds} seconds of processor time"
        if exit_code < 0:
            return "failed", f"killed by signal {-exit_code}"
        lines = output.strip().splitlines()
        return "failed", lines[-1] if lines else "ended before its last line"

    def _read(self, descriptor: int) -> bool:
        chunk = os.read(descriptor, 1 << 16)
        if descriptor == self._output_fd:
            self._output += chunk[: self._limits.output_bytes - len(self._output)]
        else:
            self._verdict = (self._verdict + chunk)[:100]
        return bool(chunk)


def _excess(folder: str, limits: ProgramLimits) -> str | None:
    size = entries = 0
    # fwalk holds on to what it opened, so a folder that is renamed meanwhile leads it nowhere else.
    for _, folders, files, descriptor in os.fwalk(folder):
        entries += len(folders) + len(files)
        if entries > limits.folder_entries:
            return f"more than {limits.folder_entries} files"
        for name in files:
            try:
                size += os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
        if size > limits.folder_bytes:
            return f"more than {limits.folder_bytes} bytes in files"
    return None

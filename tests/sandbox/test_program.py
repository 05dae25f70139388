"""Programs that try to get out. Where it is safe, the same attack is shown to work without the sandbox."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.sandbox import program as sandbox
from selfmoe_ray.sandbox.program import Outcome, ProgramLimits, run_program

NOBODY = 65534
TRY = """
import os
def attempt(name, action):
    try:
        action()
        print("DONE", name)
    except (OSError, RuntimeError, MemoryError, ImportError) as error:
        print("refused", name, error)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which programs get theirs; empty again after each test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def run(program: str, **limits: float) -> Outcome:
    return run_program(program, run_model_written_code=True, limits=ProgramLimits(**limits))  # type: ignore[arg-type]


def unconfined(program: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, timeout=60)
    return done.stdout


def attempts(*actions: str) -> str:
    return TRY + "\n".join(f"attempt({action!r}, lambda: {action})" for action in actions)


def test_programs_in_order_run_as_they_do_elsewhere() -> None:
    outcome = run(
        """
import bisect, collections, dataclasses, datetime, functools, hashlib, heapq, itertools, math, random, re, string
from typing import List
@dataclasses.dataclass
class Point:
    x: "int" = 1
def total(numbers: List[int]) -> int:
    return sum(numbers)
assert total([1, 2]) + Point().x == 4
with open("note.txt", "w") as file:
    file.write("kept")
assert open("note.txt").read() == "kept"
if __name__ == "__main__":
    print("é", random.random() < 1, hashlib.md5(b"").hexdigest()[:4])
"""
    )
    assert outcome == Outcome("passed", "", "é True d41d\n")


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("assert 1 + 1 == 3, 'wrong'", "failed", "AssertionError: wrong"),
        ("x = (", "failed", "SyntaxError: '(' was never closed"),
        ("x = '\\ud800'\nprint(x)", "failed", "surrogates not allowed"),
        ("raise SystemExit(0)\nassert False", "failed", "SystemExit: 0"),
        ("import os\nos._exit(0)\nassert False", "failed", "ended before its last line"),
        ("import os\nos.abort()", "failed", "killed by signal 6"),
        ("input()", "failed", "EOFError: EOF when reading a line"),
    ],
)
def test_only_a_program_that_reaches_its_last_line_passes(program: str, status: str, detail: str) -> None:
    outcome = run(program)
    assert outcome.status == status and detail in outcome.detail
    assert "sandbox" not in outcome.output


def test_nothing_runs_unless_it_is_asked_for() -> None:
    with pytest.raises(UserError, match="run_model_written_code=True"):
        run_program("print(1)", run_model_written_code=False)


def test_neither_processes_nor_threads() -> None:
    outcome = run(
        attempts(
            "os.fork()",
            "os.posix_spawn('/bin/sh', ['sh', '-c', 'true'], {})",
            "os.execv('/bin/sh', ['sh', '-c', 'true'])",
            "__import__('subprocess').run(['true'])",
            "__import__('multiprocessing').Process(target=print).start()",
            "__import__('threading').Thread(target=print).start()",
        )
        + "\nimport ctypes\nprint('DONE' if ctypes.CDLL(None).fork() >= 0 else 'refused fork')"
        + "\nprint('refused system' if os.system('echo DONE') else 'DONE system')"
        + "\nwhile True:\n    attempt('fork', os.fork)",
        wall_seconds=2,
    )
    assert "DONE" not in outcome.output and outcome.status == "timed out"
    assert outcome.output.count("refused") > 100


@pytest.mark.parametrize(
    "program",
    [
        "kept = []\nwhile True: kept.append(bytearray(10**7))",
        "import mmap\nmmap.mmap(-1, 1 << 30)",
        "x = 'x' * (1 << 30)",
        "x = [0]\nwhile True: x += x",
    ],
)
def test_memory_is_bounded(program: str) -> None:
    outcome = run(program, memory_bytes=256 << 20)
    assert outcome.status == "failed"
    assert "MemoryError" in outcome.detail or "Cannot allocate memory" in outcome.detail


def test_no_network(tmp_path: Path) -> None:
    path = f"/tmp/test-sandbox-{os.getpid()}.socket"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        port = tcp.getsockname()[1]
        unix.bind(path)
        unix.listen()
        os.chmod(path, 0o777)
        program = "import socket" + attempts(
            f"socket.create_connection(('127.0.0.1', {port}), 5)",
            f"socket.socket(socket.AF_UNIX).connect({path!r})",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            "socket.socketpair()",
            "socket.create_server(('127.0.0.1', 0))",
        )
        try:
            assert unconfined(program, tmp_path).count("DONE") == 6
            for listener in (tcp, unix):
                listener.accept()[0].close()
                listener.setblocking(False)
            outcome = run(program)
            assert outcome.passed and outcome.output.count("refused") == 6
            for listener in (tcp, unix):
                with pytest.raises(BlockingIOError):
                    listener.accept()
        finally:
            os.unlink(path)


def test_no_way_to_change_what_lies_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    file = outside / "file"
    # Each changes something; in this order, so that the last ones still find the file.
    actions = [
        f"open('{outside}/new', 'w').close()",
        "open('../new', 'w').close()",
        f"open('/proc/self/root{outside}/by-proc', 'w').close()",
        f"os.mkdir('{outside}/folder')",
        f"open('{file}', 'a').write('x')",
        f"os.open('{file}', os.O_RDONLY | os.O_TRUNC)",
        f"os.truncate('{file}', 1)",
        f"os.utime('{file}', (1, 1))",
        f"os.chmod('{file}', 0o600)",
        f"os.setxattr('{file}', 'user.x', b'x')",
        f"os.link('{file}', 'hard')",
        f"os.symlink('{file}', 'soft')",
        "os.write(os.open('soft', os.O_WRONLY | os.O_APPEND), b'x')",
        "os.mkfifo('fifo')",
        f"os.rename('{file}', 'mine')",
        f"os.replace('mine', '{outside}/moved')",
        f"os.unlink('{outside}/moved')",
    ]

    def prepare() -> list[object]:
        subprocess.run(["rm", "-rf", str(outside)], check=True)
        outside.mkdir()
        file.write_text("content")
        outside.chmod(0o777)
        file.chmod(0o666)
        return state()

    def state() -> list[object]:
        every = sorted([outside, *outside.rglob("*")])
        return [(path.name, path.stat().st_mode, path.stat().st_mtime_ns, path.stat().st_nlink) for path in every]

    prepare()
    (tmp_path / "free").mkdir()
    assert unconfined(attempts(*actions), tmp_path / "free").count("DONE") == len(actions)
    before = prepare()
    outcome = run(attempts(*actions))
    assert outcome.passed and "DONE" not in outcome.output
    assert state() == before and file.read_text() == "content"


def test_files_outside_cannot_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    secret.chmod(0o666)
    program = (
        attempts(
            f"print(open('{secret}').read())",
            f"print(os.listdir('{tmp_path}'))",
            "print(os.listdir('..'))",
            "print(open('/etc/passwd').read())",
            "print(os.listdir('/proc'))",
        )
        + "\nos.mkdir('a', 0o300)"
    )
    outcome = run(program)
    assert outcome.detail.startswith("PermissionError") and outcome.output.count("refused") == 5


SECRETS = """
import os
def show(path):
    try:
        print(open(path, 'rb').read(1 << 20))
    except OSError as error:
        print("refused", path)
print(dict(os.environ))
for process in ("self", os.getppid()):
    for name in ("environ", "cmdline", "maps", "task/%s/environ" % process):
        show(f"/proc/{process}/{name}")
"""


def test_no_secret_of_the_parent_is_seen(tmp_path: Path) -> None:
    environment = {**os.environ, "API_KEY": "hush-hush"}
    call = "print(run_program(program, run_model_written_code=True).output)"
    free = "print(subprocess.run([sys.executable, '-c', program], env={}, capture_output=True, text=True).stdout)"

    def parent_runs(statement: str) -> str:
        imports = "import subprocess, sys\nfrom selfmoe_ray.sandbox.program import run_program\n"
        script = f"{imports}program = {SECRETS!r}\n{statement}"
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "hush-hush" in parent_runs(free)
    seen = parent_runs(call)
    assert "hush-hush" not in seen and seen.count("refused") == 8


def test_no_signal_reaches_another_process() -> None:
    """The victim belongs to the user that programs run as, so that rights of users do not protect it."""
    is_root = os.geteuid() == 0
    victim = subprocess.Popen(["sleep", "120"], user=NOBODY if is_root else None, cwd="/")
    program = "import fcntl, resource, signal" + attempts(
        f"os.kill({victim.pid}, 9)",
        "os.kill(os.getppid(), 9)",
        "os.kill(-1, 9)",
        f"os.killpg({victim.pid}, 9)",
        f"os.pidfd_open({victim.pid})",
        f"resource.prlimit({victim.pid}, resource.RLIMIT_CPU, (1, 1))",
        f"os.setpriority(os.PRIO_PROCESS, {victim.pid}, 19)",
        f"os.sched_setaffinity({victim.pid}, [0])",
        f"fcntl.fcntl(1, fcntl.F_SETOWN, {victim.pid})",
        "os.setuid(0)",
        "os.setsid()",
    )
    try:
        outcome = run(program + "\nassert os.getuid() != 0 and os.getgroups() == []" if is_root else program)
        assert outcome.passed, outcome.output
        assert outcome.output.count("refused") == 11
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(3600)",
        "import os, time\nfor fd in range(1, 64):\n    try: os.close(fd)\n    except OSError: pass\ntime.sleep(3600)",
        "import signal, time\nfor number in range(1, 32):\n    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except OSError: pass\ntime.sleep(3600)",
    ],
)
def test_an_endless_program_is_stopped(program: str) -> None:
    outcome = run(program, wall_seconds=1)
    assert (outcome.status, outcome.detail) == ("timed out", "not done after 1 seconds")


def test_processor_time_is_bounded() -> None:
    outcome = run("while True: pass", cpu_seconds=1, wall_seconds=60)
    assert (outcome.status, outcome.detail) == ("timed out", "more than 1 seconds of processor time")


def test_of_a_huge_output_the_beginning_is_kept() -> None:
    outcome = run("for _ in range(1000): print('x' * 9999)", output_bytes=1000)
    assert outcome == Outcome("passed", "", "x" * 1000)


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("open('big', 'w').write('x' * (2 << 20))", "failed", "OSError: [Errno 27] File too large"),
        ("for i in range(10**6): open(str(i), 'w').write('x' * 10**6)", "stopped", "more than 16777216 bytes in files"),
        ("for i in range(10**6): open(str(i), 'w').close()", "stopped", "more than 256 files"),
        # Deeper than Python's stack, and than the longest path that the kernel takes.
        ("import os\nfor i in range(10**4): os.mkdir('folder'); os.chdir('folder')", "stopped", "more than 256 files"),
    ],
)
def test_files_are_bounded_and_gone_afterwards(program: str, status: str, detail: str) -> None:
    outcome = run(program + "\nimport time\ntime.sleep(60)", wall_seconds=60)
    assert (outcome.status, outcome.detail) == (status, detail)


def test_a_program_dies_with_the_process_that_wanted_it() -> None:
    script = (
        "from selfmoe_ray.sandbox.program import run_program\n"
        "run_program('import time\\nprint(1)\\ntime.sleep(600)', run_model_written_code=True)"
    )
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    parent = psutil.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 60
    # It counts from the moment that it has given up its rights; before, nobody's program runs.
    while not (children := [child for child in parent.children() if is_confined(child)]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert gone and not alive
    for folder in Path(tempfile.gettempdir()).iterdir():
        folder.rmdir()


def is_confined(process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return "Seccomp:\t2" in status


def test_a_machine_without_landlock_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for an old kernel: the child asks for a system call that no kernel has."""
    child = tmp_path / "child.py"
    source = Path(sandbox._CHILD).read_text()
    assert "_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444" in source
    child.write_text(source.replace("_LANDLOCK_RESTRICT_SELF = 444", "_LANDLOCK_RESTRICT_SELF = 4444"))
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(UserError, match=r"Landlock is missing: it needs Linux 5\.13"):
        run("print('ran')")

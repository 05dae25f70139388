"""The inside of the sandbox: gives up every right, then runs the program in this same interpreter.

Started by program.py as a script of its own (`python -I`), with a JSON request on stdin; imports
nothing but the standard library. In order: no new privileges, an unprivileged user, Landlock,
resource limits, seccomp.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import math
import os
import resource
import signal
import sys
import termios
import time
import traceback
import types
from collections.abc import Iterable
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_U64 = ctypes.c_uint64

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_READ_SEARCH = 2
_NOBODY = 65534

# Numbers that all architectures share.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
# Access rights of Landlock's uapi header, by bit.
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(1, 6))
_MAKE_DIR, _MAKE_REG = 1 << 7, 1 << 8
_TRUNCATE = 1 << 14
_READ = _READ_FILE | _READ_DIR
_OWN_FOLDER = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _TRUNCATE
# The number of file access rights that each version of Landlock knows.
_ACCESS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
_ACCESS_BITS_SINCE_5 = 16
_ALL_NET = 0b11
_ALL_SCOPES = 0b11

_SCMP_ACT_ALLOW = 0x7FFF0000
_SCMP_ACT_EPERM = 0x00050000 | errno.EPERM
_SCMP_CMP_MASKED_EQ = 7
_INT = 0xFFFFFFFF
# All that a program may ask of the kernel: computing, telling the time, and files (which Landlock
# narrows). Processes, threads, sockets, signals to others, changes of owner, mode or time, links and
# everything that a later kernel brings are not here.
_SYSCALLS = """
    read write readv writev pread64 pwrite64 lseek close stat fstat lstat newfstatat statx access faccessat
    faccessat2 getdents64 getcwd chdir fchdir rmdir unlink unlinkat rename renameat renameat2 ftruncate fsync
    fdatasync flock dup dup2 dup3 pipe pipe2 poll ppoll select pselect6 readlink readlinkat sendfile copy_file_range
    brk mmap munmap mremap mprotect madvise futex
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack setitimer getitimer alarm pause
    getpid gettid getppid getuid geteuid getgid getegid getgroups getpgrp uname sysinfo getrusage getrandom
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times restart_syscall
    sched_yield sched_getaffinity getcpu exit exit_group
"""
_FCNTL = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL,
          fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_SETLKW)  # fmt: skip
_IOCTL = (termios.TCGETS, termios.FIOCLEX, termios.FIONCLEX, termios.FIONREAD)


class _Compare(ctypes.Structure):
    """One condition on an argument of a system call: argument & mask == value."""

    _fields_ = (("argument", ctypes.c_uint), ("op", ctypes.c_int), ("mask", _U64), ("value", _U64))


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", _U64), ("net", _U64), ("scoped", _U64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", _U64), ("descriptor", ctypes.c_int32))


class _Unavailable(Exception):
    """Something that the sandbox is made of is missing; the message says what."""


def main() -> None:
    """Give up every right, then run the program that comes on stdin; the exit status is its verdict."""
    request = json.load(sys.stdin)
    verdict = request["verdict"]
    try:
        _give_up_rights(request)
    except (_Unavailable, OSError) as error:
        sys.exit(str(error))
    os.write(verdict, b"ready\n")
    try:
        program = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(request["program"], "program.py", "exec"), program.__dict__)
        sys.stdout.flush()
    # Whatever the program raises, SystemExit too, is its failure.
    except BaseException as error:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        # Without this file's own line, which would show the reader a path of this machine.
        traceback.print_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
        os._exit(1)
    os.write(verdict, f"{request['token']}\n".encode())
    os._exit(0)


def _give_up_rights(request: dict[str, Any]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    seccomp = _load_libseccomp()
    landlock = _landlock_ruleset(request["readable"])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if os.geteuid() == 0:
        os.chown(".", _NOBODY, _NOBODY)
        _become_nobody()
    _check_imports()
    # The change of user clears it, hence here; a parent that died before is gone for good.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != request["parent"]:
        sys.exit("the process that wanted the program is gone")
    _syscall(_LANDLOCK_RESTRICT_SELF, landlock, 0)
    os.close(landlock)
    _limit_resources(request)
    _filter_syscalls(seccomp)


def _become_nobody() -> None:
    """No capability is left but reading, which Landlock narrows: Python may lie in a private folder."""
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Two times effective, permitted, inheritable: capabilities 0 to 31, then the others.
    sets = (ctypes.c_uint32 * 6)()
    _check(_LIBC.capget(header, sets), "capget")
    kept = sets[1] & (1 << _CAP_DAC_READ_SEARCH)
    _check(_LIBC.capset(header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)), "capset")


def _check_imports() -> None:
    """Imports that fail for want of a right would otherwise count as mistakes of the program."""
    for folder in (os.path.dirname(os.__file__), sys.prefix):
        try:
            os.listdir(folder)
        except PermissionError:
            raise _Unavailable(
                f"programs run without root's rights, which cannot read {folder}; "
                "install Python where every user can read it, or start this as another user than root"
            ) from None


def _landlock_ruleset(readable: Iterable[str]) -> int:
    version = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        raise _Unavailable("Landlock is missing: it needs Linux 5.13 or newer with that security module on")
    handled = (1 << _ACCESS_BITS.get(version, _ACCESS_BITS_SINCE_5)) - 1
    attributes = _Ruleset(handled, _ALL_NET if version >= 4 else 0, _ALL_SCOPES if version >= 6 else 0)
    ruleset = _syscall(
        _LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)), 0
    )
    for path in readable:
        _allow_beneath(ruleset, path, _READ if os.path.isdir(path) else _READ_FILE)
    _allow_beneath(ruleset, ".", _OWN_FOLDER & handled)
    return ruleset


def _allow_beneath(ruleset: int, path: str, access: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = _PathBeneath(access, descriptor)
    _syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    os.close(descriptor)


def _limit_resources(request: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_AS: request["memory_bytes"],
        resource.RLIMIT_FSIZE: request["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for name, limit in limits.items():
        resource.setrlimit(name, (limit, limit))
    cpu_seconds = math.ceil(time.process_time()) + request["cpu_seconds"]
    # SIGXCPU says why it died; SIGKILL comes a second later if it ignores that.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))


def _load_libseccomp() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        raise _Unavailable("libseccomp.so.2 is missing: install the system's libseccomp package") from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
    )  # fmt: skip
    library.seccomp_load.argtypes = (ctypes.c_void_p,)
    return library


def _filter_syscalls(library: ctypes.CDLL) -> None:
    """Refuse with EPERM every system call that is not allowed here."""
    context = library.seccomp_init(_SCMP_ACT_EPERM)

    def allow(name: str, *conditions: tuple[int, int, int]) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # not on this architecture
            return
        compares = (_Compare * len(conditions))(
            *(_Compare(argument, _SCMP_CMP_MASKED_EQ, mask, value) for argument, mask, value in conditions)
        )
        _check(library.seccomp_rule_add_array(context, _SCMP_ACT_ALLOW, number, len(compares), compares), name)

    for name in _SYSCALLS.split():
        allow(name)
    # Before its version 3, Landlock lets a file that may be read be emptied.
    allow("openat", (2, os.O_TRUNC, 0))
    allow("openat", (2, os.O_ACCMODE, os.O_WRONLY))
    allow("openat", (2, os.O_ACCMODE, os.O_RDWR))
    # Folders that their owner cannot list would hide what is in them from the watcher.
    allow("mkdir", (1, 0o700, 0o700))
    allow("mkdirat", (2, 0o700, 0o700))
    # To itself only, and not by way of a descriptor's owner (F_SETOWN).
    allow("kill", (0, _INT, os.getpid()))
    allow("tgkill", (0, _INT, os.getpid()))
    for command in _FCNTL:
        allow("fcntl", (1, _INT, command))
    for command in _IOCTL:
        allow("ioctl", (1, _INT, command))
    if library.seccomp_load(context) != 0:
        raise _Unavailable("the kernel takes no seccomp filter")


def _prctl(option: int, value: int) -> None:
    _check(_LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _syscall(number: int, *arguments: Any) -> int:
    return _check(_LIBC.syscall(number, *arguments), f"system call {number}")


def _check(result: int, name: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


if __name__ == "__main__":
    main()

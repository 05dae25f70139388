"""Mends what a process's environment lacks for the libraries below us: a home, a user's name, short paths for
sockets, and calls of this machine to itself that no proxy takes."""

from __future__ import annotations

import functools
import getpass
import os
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.limits import cores_to_pin, usable_cores

# A path of a Unix socket has at most this many bytes.
_SOCKET_PATH_BYTES = 107
# The longest that Ray and vLLM put after a temporary folder.
_RAY_TAIL = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_VLLM_TAIL = len("/00000000-0000-0000-0000-000000000000")
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Mend:
    """What an environment lacks: found and remedy are for people; `variables` make do without the remedy."""

    check: str
    found: str
    remedy: str
    variables: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def mend_environment() -> tuple[Mend, ...]:
    """Set the variables of all mends, for this process and those that it starts; a second call says the same.

    Raises UserError where nothing can be written or no folder is short enough.
    """
    made = []
    for find in (_no_home, _no_name, _long_paths, _proxied, _quota):
        for mend in find():
            os.environ.update(mend.variables)
            made.append(mend)
    return tuple(made)


def _no_home() -> Iterator[Mend]:
    """Caches of models, kernels and settings lie below a home."""
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute() or not _can_write(home):
        kept = _own_folder()
        is_there = home.is_absolute() and home.is_dir()
        variables = {"HOME": str(kept)} if not is_there else _caches_below(kept, home)
        if variables:
            found = f"{home} cannot be written" if home.is_absolute() else f"user {os.getuid()} has no home"
            yield Mend("home", f"{found}; caches go to {kept}", "set HOME to a folder that lasts", variables)


def _caches_below(kept: Path, home: Path) -> dict[str, str]:
    """What a home that can only be read has stays in use: credentials, and models that were fetched before."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    if _can_write(cache):
        return {}
    models = {"HF_HOME": str(cache / "huggingface")} if (cache / "huggingface").is_dir() else {}
    wanted = {
        **models,
        "XDG_CACHE_HOME": str(kept / ".cache"),
        "XDG_CONFIG_HOME": str(kept / ".config"),
        "TRITON_HOME": str(kept),
    }
    return {name: value for name, value in wanted.items() if name == "XDG_CACHE_HOME" or name not in os.environ}


def _no_name() -> Iterator[Mend]:
    """Libraries name folders after the user."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        name = f"uid{os.getuid()}"
        yield Mend("user", f"user {os.getuid()} has no name; going on as {name}", "set LOGNAME", {"LOGNAME": name})


def _long_paths() -> Iterator[Mend]:
    """Ray's and vLLM's sockets lie below the temporary folder."""
    folder = tempfile.gettempdir()
    wanted = (
        ("RAY_TMPDIR", os.environ.get("RAY_TMPDIR", folder), _RAY_TAIL),
        ("VLLM_RPC_BASE_PATH", os.environ.get("VLLM_RPC_BASE_PATH", folder), _VLLM_TAIL),
    )
    for name, path, tail in wanted:
        limit = _SOCKET_PATH_BYTES - tail
        if len(os.fsencode(path)) > limit:
            short = _short_folder(limit, path)
            found = f"{path} is too long for sockets; they go to {short}"
            yield Mend("sockets", found, f"set {name} to a folder of at most {limit} bytes", {name: short})


def _short_folder(limit: int, path: str) -> str:
    for folder in _SHORT_FOLDERS:
        if len(folder) <= limit and Path(folder).is_dir() and _can_write(Path(folder)):
            return folder
    raise UserError(
        f"TMPDIR: {path!r} is longer than the {limit} bytes that leave room for sockets, and none of "
        f"{', '.join(_SHORT_FOLDERS)} can be written; set TMPDIR to a shorter folder"
    )


def _proxied() -> Iterator[Mend]:
    """Requests to a server on this machine; who sets a proxy seldom thinks of them."""
    proxies = {name: value for name, value in urllib.request.getproxies_environment().items() if name != "no"}
    spares = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    unspared = [host for host in _LOCAL if not spares(host)]
    if proxies and unspared:
        spared = [each for each in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")).split(",") if each]
        value = ",".join([*spared, *unspared])
        found = (
            f"{', '.join(f'{name}_proxy' for name in sorted(proxies))} is set, also for calls of this machine to itself"
        )
        yield Mend("proxy", found, f"set NO_PROXY={value}", {"no_proxy": value, "NO_PROXY": value})


def _quota() -> Iterator[Mend]:
    """Where nothing else is asked for, libraries start a thread for every core that they see."""
    if not cores_to_pin() and "OMP_NUM_THREADS" not in os.environ:
        found = f"a quota of {usable_cores()} cores, of {len(os.sched_getaffinity(0))} that are there"
        yield Mend("cores", found, "", {"OMP_NUM_THREADS": str(usable_cores())})


def _own_folder() -> Path:
    """A folder of this user's below the temporary one: the same every time, unless another user has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"selfmoe_ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
            return folder
        return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    except OSError as error:
        raise UserError(
            f"HOME: {os.path.expanduser('~')!r} cannot be written, nor can {folder} ({error.strerror}); "
            "set HOME or TMPDIR to a folder that can"
        ) from None


def _can_write(folder: Path) -> bool:
    """Whether a folder takes files, or can be made."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)

"""What a process does without a home, a name, a short temporary folder or a proxy that spares it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

# What was mended, what the libraries make of it, and where caches are.
ASK = """
import getpass, json, os
from selfmoe_ray.base_model.cache import cache_root
from selfmoe_ray.machines.environment import mend_environment
from selfmoe_ray.errors import UserError
try:
    mends = mend_environment()
except UserError as error:
    raise SystemExit(str(error))
print(json.dumps({
    "mends": {mend.check: mend.found for mend in mends if mend.remedy},
    "user": getpass.getuser(), "cache": str(cache_root()), "environment": dict(os.environ),
}))
"""
ROOT = Path(__file__).parents[2]
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
# One that no machine gives a name to.
NOBODY_KNOWN = 64_197


def ask(environment: Mapping[str, str], uid: int | None = None) -> dict[str, object]:
    """What a process with this environment says; with the id of another user, who may read but not write all."""
    told = subprocess.run(
        [*(as_user(uid) if uid else []), sys.executable, "-c", ASK],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    return dict(json.loads(told.stdout))


def as_user(uid: int) -> list[str]:
    """This Python may lie in root's home, hence the capability."""
    reads = "+dac_read_search"
    return [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        f"--inh-caps={reads}",
        f"--ambient-caps={reads}",
    ]


def mended(environment: Mapping[str, str], uid: int | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """What was mended, and the environment after it."""
    told = ask(environment, uid)
    return told["mends"], told["environment"]  # type: ignore[return-value]


def test_an_ordinary_environment_stays_as_it_is(tmp_path: Path) -> None:
    mends, _ = mended({"HOME": str(tmp_path), "LOGNAME": "one"})
    assert mends == {}


@needs_root
@pytest.mark.parametrize("home", [None, "/", "/nowhere/home"])
def test_a_user_without_a_name_and_a_home_gets_both(tmp_path: Path, home: str | None) -> None:
    told = ask({"TMPDIR": "/tmp", **({"HOME": home} if home else {})}, NOBODY_KNOWN)
    assert set(told["mends"]) == {"home", "user"}  # type: ignore[call-overload]
    assert told["user"] == f"uid{NOBODY_KNOWN}"
    assert str(told["cache"]).startswith(f"/tmp/selfmoe_ray-{NOBODY_KNOWN}/")


@needs_root
def test_a_home_that_can_only_be_read_keeps_what_it_has(tmp_path: Path) -> None:
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    mends, environment = mended({"TMPDIR": "/tmp", "HOME": str(tmp_path), "LOGNAME": "one"}, NOBODY_KNOWN)
    assert list(mends) == ["home"] and environment["HOME"] == str(tmp_path)
    assert environment["HF_HOME"] == str(tmp_path / ".cache" / "huggingface")
    assert environment["XDG_CACHE_HOME"] == f"/tmp/selfmoe_ray-{NOBODY_KNOWN}/.cache"


@needs_root
def test_a_folder_of_caches_that_another_user_laid_there_is_not_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / f"selfmoe_ray-{NOBODY_KNOWN}").mkdir(mode=0o777)
    _, environment = mended({"TMPDIR": str(tmp_path), "LOGNAME": "one", "RAY_TMPDIR": "/tmp"}, NOBODY_KNOWN)
    assert environment["HOME"].startswith(f"{tmp_path}/selfmoe_ray-{NOBODY_KNOWN}-")


def test_sockets_leave_a_folder_that_is_too_long_for_them(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    mends, environment = mended({"HOME": str(tmp_path), "LOGNAME": "one", "TMPDIR": str(deep)})
    assert "too long for sockets" in mends["sockets"]
    assert (environment["RAY_TMPDIR"], environment["VLLM_RPC_BASE_PATH"]) == ("/tmp", "/tmp")
    assert environment["TMPDIR"] == str(deep), "whatever has no sockets stays there"


@pytest.mark.parametrize(
    ("spared", "after"),
    [(None, "127.0.0.1,localhost,::1"), ("example.org,localhost", "example.org,localhost,127.0.0.1,::1")],
)
def test_calls_of_this_machine_to_itself_pass_no_proxy(tmp_path: Path, spared: str | None, after: str) -> None:
    own = {"HOME": str(tmp_path), "LOGNAME": "one", "http_proxy": "http://127.0.0.1:9"}
    mends, environment = mended({**own, **({"NO_PROXY": spared} if spared else {})})
    assert "http_proxy is set" in mends["proxy"]
    assert environment["no_proxy"] == environment["NO_PROXY"] == after
    for enough in ("*", after):
        assert mended({**own, "no_proxy": enough})[0] == {}

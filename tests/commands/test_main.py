"""`selfmoe`: one name for every command."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from selfmoe_ray import __version__
from selfmoe_ray.commands.main import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "vllm", "transformers", "pyarrow", "pydantic")
# The modules that were loaded are told of at exit, which argparse's own exit passes through.
WATCHED = f"""
import atexit, os, sys
atexit.register(lambda: print("loaded", *(name for name in {HEAVY} if name in sys.modules)))
from selfmoe_ray.commands.main import main
main()
"""


def selfmoe(*arguments: str, code: str = WATCHED) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_help_names_every_command_and_loads_none() -> None:
    done = selfmoe("--help")
    assert done.returncode == 0 and done.stdout.endswith("loaded\n")
    for name, command in COMMANDS.items():
        assert f"  {name}" in done.stdout and command.sentence in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_own_help_opens_with_its_name_and_loads_nothing_heavy(name: str) -> None:
    done = selfmoe(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: selfmoe {name} [-h]"), done.stderr
    assert not {"torch", "ray", "vllm"} & set(done.stdout.splitlines()[-1].split())


def test_the_version_is_the_packages() -> None:
    assert selfmoe("--version").stdout.startswith(f"selfmoe_ray {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("evaluate",), "invalid choice: 'evaluate'"),
        (("serve", "--run", "nowhere"), "error: nowhere/mixse: no config.json"),
        (("base-model", "nowhere.gguf"), "error: base_model: "),
        (("run", "--config", "nowhere.yaml"), "error: --config: cannot read 'nowhere.yaml'"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(arguments: tuple[str, ...], message: str) -> None:
    done = selfmoe(*arguments)
    assert done.returncode == 2 and message in done.stderr.replace(f"{ROOT}/", "")
    assert "Traceback" not in done.stderr


def test_serving_prints_no_line_for_machines() -> None:
    assert "RESULT" not in selfmoe("serve", "--run", "nowhere").stdout


def test_a_failed_check_is_the_doctors_status(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = selfmoe("doctor", "--root", str(file / "runs"))
    assert done.returncode == 1 and "failed" in done.stdout


def test_the_installed_command_is_this_one() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"selfmoe": "selfmoe_ray.commands.main:main"}


@pytest.mark.parametrize("name", ["pipeline", "eval", "studies", "serve", "doctor"])
def test_a_job_takes_the_same_options_as_its_command(name: str) -> None:
    job = subprocess.run(
        [sys.executable, f"jobs/{name}.py", "--help"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    command = selfmoe({"pipeline": "run"}.get(name, name), "--help")
    assert job.stdout.split("\n\n", 1)[1] in command.stdout

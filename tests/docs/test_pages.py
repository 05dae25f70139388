"""Links, paths and commands of the pages lead somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from selfmoe_ray.commands.main import COMMANDS
from selfmoe_ray.run.config_file import load_config

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "docs/example-study", "cluster", "examples")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))])
JOBS = {"pipeline": "run", "eval": "eval", "studies": "studies", "serve": "serve", "doctor": "doctor"}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands of the package in a page's code: their names, as `selfmoe` has them, and arguments."""
    for block in re.findall(r"```[a-z]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if re.search(r"selfmoe|jobs/", line) else []
            for place, word in enumerate(words):
                if job := re.fullmatch(r"jobs/(\w+)\.py", word):
                    yield JOBS[job[1]], words[place + 1 :]
                elif Path(word).name == "selfmoe" and place == 0:
                    yield words[1], words[2:]


WRITTEN = [(name(page), *command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not lost, f"{name(page)} links to what is not there: {', '.join(lost)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_exist(page: Path) -> None:
    folders = "selfmoe_ray|jobs|serve_configs|benchmarks|examples|requirements|tests"
    paths = re.findall(rf"`((?:{folders})/[\w./-]+\w)[` ]", page.read_text(encoding="utf-8"))
    lost = [path for path in paths if not (ROOT / path).exists()]
    assert not lost, f"{name(page)} names what is not there: {', '.join(lost)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_has_its_targets(page: Path) -> None:
    targets = re.findall(r"^(?:`{0,1})make ([a-z-]+)|`make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lost = [target for pair in targets for target in pair if target and f"\n{target}:" not in makefile]
    assert not lost, f"{name(page)} names targets that make does not have: {', '.join(lost)}"


def test_commands_are_found_on_the_pages() -> None:
    assert {command for _, command, _ in WRITTEN} >= {"run", "eval", "studies", "serve"}


@pytest.mark.parametrize(("page", "command", "arguments"), WRITTEN)
def test_a_command_is_understood(
    page: str, command: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    module = import_module(COMMANDS[command].module)
    if not hasattr(module, "parser"):
        return
    try:
        given: argparse.Namespace = module.parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{page}: {command} does not know {arguments}")
    if command == "run":
        load_config(given.config, given.set)

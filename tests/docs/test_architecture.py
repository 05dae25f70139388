"""docs/architecture.md names what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.test_layers import ROOMS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "selfmoe_ray"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# Four spaces deep, from the package's name to the first line that is not.
TREE = re.compile(r"^    selfmoe_ray/\n(?:    .*\n)+", re.MULTILINE)


def definitions(path: Path) -> set[str]:
    """The functions, classes and methods of a file, as "function", "Class", "Class.method"."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


def test_every_file_and_function_named_exists() -> None:
    named = re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE)
    assert len(named) > 40
    lost = [
        f"{path}:{name}"
        for path, name in named
        if not (PACKAGE / path).is_file() or name not in definitions(PACKAGE / path)
    ]
    assert not lost, f"docs/architecture.md names what is not there: {', '.join(lost)}"


def test_the_tree_has_every_room_in_its_order() -> None:
    (tree,) = TREE.findall(PAGE)
    rooms = re.findall(r"^      (\w+)(?:/|\.py) ", tree, re.MULTILINE)
    assert rooms == ROOMS
    folders = re.findall(r"^    (\w+)/", tree, re.MULTILINE)
    assert [name for name in folders if not (ROOT / name).is_dir()] == []


def test_the_readme_shows_the_same_tree() -> None:
    assert TREE.findall((ROOT / "README.md").read_text(encoding="utf-8")) == TREE.findall(PAGE)

"""Rooms in one strict order, no circle among files, and Ray only in `ray_*.py` files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "selfmoe_ray"
# A file imports its own room and those above it in this list; docs/architecture.md says what each is for.
ROOMS = [
    "errors",
    "config",
    "base_model",
    "run",
    "mixture",
    "sandbox",
    "domains",
    "machines",
    "engine",
    "generation",
    "training",
    "serving",
    "measure",
    "evaluation",
    "reporting",
    "pipeline",
    "commands",
]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, packages included."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, inside functions too; modules where they are some."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in MODULES else node.module


def room(module: str) -> str:
    """The room of a module of the package; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def own_imports() -> dict[str, dict[str, int]]:
    """The package's modules that each module imports, with the line."""
    return {
        module: {name: line for line, name in imports(path) if name in MODULES and name not in (module, "selfmoe_ray")}
        for module, path in MODULES.items()
    }


def test_the_root_holds_rooms_errors_and_config_alone() -> None:
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "config.py", "errors.py"]
    assert {room(module) for module in MODULES} - {""} == set(ROOMS)


def test_no_file_imports_from_a_room_below_its_own() -> None:
    problems = [
        f"{MODULES[module].relative_to(PACKAGE.parent)}:{line} imports {name}"
        for module, names in own_imports().items()
        for name, line in names.items()
        if room(module) and ROOMS.index(room(name)) > ROOMS.index(room(module))
    ]
    assert not problems, "\n".join(problems)


def test_only_shells_import_ray() -> None:
    problems = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}; that belongs in a ray_*.py file"
        for path in MODULES.values()
        if not path.name.startswith("ray_")
        for line, name in imports(path)
        if name.split(".")[0] == "ray"
    ]
    assert not problems, "\n".join(problems)


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module: set(names) for module, names in own_imports().items()}
    while graph:
        leaves = {module for module, names in graph.items() if not names & graph.keys()}
        if not leaves:
            break
        graph = {module: names - leaves for module, names in graph.items() if module not in leaves}
    circles = {module: sorted(names & graph.keys()) for module, names in graph.items()}
    assert not circles, f"each of these leads to a circle: {circles}"

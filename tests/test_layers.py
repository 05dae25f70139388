"""Lower rooms never import higher ones, and only the shells know Ray."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "selfmoe_ray"
# Lowest first; a file may import from its own floor and from those below.
FLOORS = [
    {"errors", "config", "records", "storage", "run_dir", "run_lock", "events", "scalars", "trackers"}
    | {"processes", "energy", "distributions", "base_model", "gguf", "fingerprint"},
    {"domains", "generation", "reporting"},
    {"mixture", "training"},
    {"evaluation", "serving", "planning"},
    {"diagnosis"},
    {"ray_"},
    {"provenance", "stages", "pipeline"},
    {"command", "doctor"},
    {"eval_command", "studies_command"},
]


def room(module: str) -> str:
    """The name in FLOORS that a dotted module below the package belongs to."""
    parts = module.split(".")
    return "ray_" if parts[-1].startswith("ray_") or parts[0].startswith("ray_") else parts[0]


def floor(module: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room(module) in rooms)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "selfmoe_ray":
                yield from ((node.lineno, f"selfmoe_ray.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def test_no_file_imports_from_above_and_only_shells_import_ray() -> None:
    problems = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module == "__init__":
            continue
        for line, name in imports(ast.parse(path.read_text())):
            where = f"selfmoe_ray/{path.relative_to(PACKAGE)}:{line}"
            if name.split(".")[0] == "ray" and room(module) not in ("ray_", "pipeline"):
                problems.append(f"{where} imports {name}; that belongs in a ray_*.py file")
            if name.startswith("selfmoe_ray.") and floor(name.removeprefix("selfmoe_ray.")) > floor(module):
                problems.append(f"{where} imports {name}, which is above {room(module)}")
    assert not problems, "\n".join(problems)


def test_every_file_is_on_a_floor() -> None:
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        assert module == "__init__" or floor(module) >= 0

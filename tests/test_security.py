"""What may be loaded: text, Parquet and safetensors; nothing that runs as it is read."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "selfmoe_ray"
# (module, function) pairs that run what they read, or write where an archive says.
FORBIDDEN = {
    *((module, function) for module in ("pickle", "cloudpickle", "dill", "joblib") for function in ("load", "loads")),
    ("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("marshal", "loads"),
    ("shutil", "unpack_archive"), ("tarfile", "open"), ("zipfile", "ZipFile"), ("os", "system"),
}  # fmt: skip


def calls(tree: ast.AST) -> list[tuple[int, str, str]]:
    return [
        (node.lineno, node.func.value.id, node.func.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    ]


def test_no_code_is_read_from_files() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line} calls {module}.{function}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, module, function in calls(ast.parse(path.read_text()))
        if (module, function) in FORBIDDEN
    ]
    assert not found, "\n".join(found)


def test_no_process_is_started_through_a_shell() -> None:
    with_shell = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]
    assert not with_shell

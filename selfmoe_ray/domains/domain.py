"""A domain is a folder: `domain.yaml` says what its tasks are, `seeds.jsonl` holds a few of them."""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from selfmoe_ray.errors import UserError, did_you_mean
from selfmoe_ray.run.records import Seed

ShapeName = Literal["multiple_choice", "python_function", "worked_solution", "single_answer", "free"]
SHAPES: tuple[str, ...] = get_args(ShapeName)

BUILTIN_FOLDER = Path(__file__).parent / "builtin"
YAML_KEYS = ("name", "covers", "requirements", "answer", "shape")
SEED_FIELDS = ("instruction", "input", "output")
# Rows taken from elsewhere often say so; it is the one extra field that cannot be a misspelt one.
IGNORED_SEED_FIELDS = ("source",)
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]*")
MAX_PROBLEMS_SHOWN = 8


@dataclass(frozen=True)
class Domain:
    """What one expert specialises in (paper, section 3.1 and tables 9 to 12).

    covers: what the domain covers, in prose. requirements: what makes a good task.
    answer: how a task is to be answered. shape: the form that generated examples are checked for.
    seeds: the human-written tasks, at least one, no two with the same instruction and input.
    """

    name: str
    covers: str
    requirements: tuple[str, ...]
    answer: str
    shape: ShapeName
    seeds: tuple[Seed, ...]


def builtin_names() -> list[str]:
    """Names of the domains that the package ships, sorted."""
    return sorted(folder.parent.name for folder in BUILTIN_FOLDER.glob("*/domain.yaml"))


def load_domain(value: str) -> Domain:
    """The domain that a config value stands for: a built-in name, else a folder.

    Raises UserError where the value is neither, or where the folder's files are not as they should be.
    """
    if value in builtin_names():
        return _read_folder(BUILTIN_FOLDER / value)
    folder = Path(value).expanduser()
    if folder.is_dir():
        return _read_folder(folder)
    known = builtin_names()
    near = difflib.get_close_matches(value, known, n=2) or known
    found = "a file" if folder.exists() else "no folder"
    raise UserError(
        f"domains: {value!r} is no built-in domain (nearest: {', '.join(near)}), "
        f"and there is {found} at {folder.absolute()}.\n"
        "  Give a built-in name, or a folder that holds domain.yaml and seeds.jsonl."
    )


def load_domains(values: list[str]) -> list[Domain]:
    """The domains of a config, in its order. Raises UserError where two have the same name."""
    domains = [load_domain(value) for value in values]
    given_as: dict[str, str] = {}
    for value, domain in zip(values, domains, strict=True):
        if domain.name in given_as:
            raise UserError(
                f"domains: {given_as[domain.name]!r} and {value!r} are both named {domain.name!r}; "
                "each expert needs a name of its own, change `name` in one domain.yaml or list it once"
            )
        given_as[domain.name] = value
    return domains


def _read_folder(folder: Path) -> Domain:
    settings = _read_settings(folder / "domain.yaml")
    return Domain(
        name=settings["name"],
        covers=settings["covers"],
        requirements=tuple(settings["requirements"]),
        answer=settings["answer"],
        shape=cast(ShapeName, settings["shape"]),
        seeds=tuple(_read_seeds(folder / "seeds.jsonl")),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a domain folder holds domain.yaml and seeds.jsonl") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _read_settings(path: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected the keys {', '.join(YAML_KEYS)}, found {_kind(settings)}")
    problems = _setting_problems(settings)
    if problems:
        raise _to_mend(path, problems)
    return {key: _strip(value) for key, value in settings.items()}


def _setting_problems(settings: dict[str, Any]) -> list[str]:
    problems = [f"missing key {key!r}" for key in YAML_KEYS if key not in settings]
    for key, value in settings.items():
        if key not in YAML_KEYS:
            problems.append(f"unknown key {key!r}; {did_you_mean(str(key), YAML_KEYS)}")
        elif key == "requirements":
            problems.extend(_requirement_problems(value))
        elif not isinstance(value, str) or not value.strip():
            problems.append(f"{key}: expected text, found {_kind(value)}")
        elif key == "shape" and value not in SHAPES:
            problems.append(f"shape: unknown shape {value!r}; known: {', '.join(SHAPES)}")
        elif key == "name" and not NAME_PATTERN.fullmatch(value):
            problems.append(f"name: {value!r} has to be lower-case letters, digits, '_' and '-'")
    return problems


def _requirement_problems(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        return [f"requirements: expected a list of texts, found {_kind(value)}"]
    return [
        f"requirements: item {number} is {_kind(item)}, expected text (quote it if it has a colon)"
        for number, item in enumerate(value, start=1)
        if not isinstance(item, str) or not item.strip()
    ]


def _read_seeds(path: Path) -> list[Seed]:
    first_line: dict[tuple[str, str], int] = {}
    seeds: list[Seed] = []
    problems: list[str] = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            seed = _parse_seed(line)
        except ValueError as error:
            problems.append(f"{path.name}:{number}: {error}")
            continue
        task = (" ".join(seed.instruction.split()), " ".join(seed.input.split()))
        if task in first_line:
            problems.append(f"{path.name}:{number}: the same instruction and input as line {first_line[task]}")
        first_line.setdefault(task, number)
        seeds.append(seed)
    if problems:
        raise _to_mend(path, problems)
    if not seeds:
        raise UserError(f"{path}: no seeds; add one JSON object a line with {', '.join(SEED_FIELDS)}")
    return seeds


def _parse_seed(line: str) -> Seed:
    """Raises ValueError, with what is wrong as its text."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with {', '.join(SEED_FIELDS)}, found {_kind(row)}")
    for name in SEED_FIELDS:
        if name not in row:
            raise ValueError(f"missing field {name!r}" + (' (write "" for none)' if name == "input" else ""))
        if not isinstance(row[name], str):
            raise ValueError(f"{name}: expected text, found {_kind(row[name])}")
        if name != "input" and not row[name].strip():
            raise ValueError(f"{name}: expected text, found an empty one")
    unknown = sorted(set(row) - {*SEED_FIELDS, *IGNORED_SEED_FIELDS})
    if unknown:
        known = ", ".join(SEED_FIELDS + IGNORED_SEED_FIELDS)
        raise ValueError(f"unknown field {unknown[0]!r}; known: {known}")
    return Seed(row["instruction"].strip(), row["input"].strip(), row["output"].strip())


def _to_mend(path: Path, problems: list[str]) -> UserError:
    shown = [f"  {problem}" for problem in problems[:MAX_PROBLEMS_SHOWN]]
    if len(problems) > MAX_PROBLEMS_SHOWN:
        shown.append(f"  ... and {len(problems) - MAX_PROBLEMS_SHOWN} more")
    return UserError("\n".join([f"{path}: {len(problems)} problem(s) to mend", *shown]))


def _kind(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "nothing"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    return textwrap.shorten(repr(value), 60)


def _strip(value: Any) -> Any:
    return [item.strip() for item in value] if isinstance(value, list) else value.strip()

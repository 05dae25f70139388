"""docs/configuration.md, made from the settings themselves: `python -m selfmoe_ray.commands.configuration`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from selfmoe_ray.config import RunConfig, Section
from selfmoe_ray.serving.config import ServeArgs

_BOUNDS = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}


def page() -> str:
    """The page: every setting of a run and of a server with its default, what it may be, and a sentence."""
    return "\n".join(
        [
            "# Settings",
            "",
            "Made from `selfmoe_ray/config.py` and `selfmoe_ray/serving/config.py` by `make docs`.",
            "",
            "## A run",
            "",
            "In the YAML file of `--config`, or one by one as `--set section.field=value`.",
            *_section(RunConfig, ""),
            "",
            "## A server",
            "",
            "The `args` of an application in `serve_configs/*.yaml`.",
            *_section(ServeArgs, ""),
            "",
        ]
    )


def _section(section: type[Section], prefix: str) -> Iterator[str]:
    inner = {name: kind for name, field in section.model_fields.items() if (kind := _section_of(field))}
    yield from ("", "| setting | default | may be | what it is |", "|---|---|---|---|")
    for name, field in section.model_fields.items():
        if name not in inner:
            cells = (f"`{prefix}{name}`", _default(field), _values(field), field.description or "")
            yield f"| {' | '.join(map(_escape, cells))} |"
    for name, kind in inner.items():
        yield from ("", f"### {prefix}{name}", "", (kind.__doc__ or "").strip())
        yield from _section(kind, f"{prefix}{name}.")


def _escape(cell: str) -> str:
    """What Markdown would take for a column or for HTML."""
    return cell.replace("|", "\\|").replace("<", "&lt;")


def _section_of(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "to be given"
    default = field.get_default(call_default_factory=True)
    return "" if default in (None, PydanticUndefined) else f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def _values(field: FieldInfo) -> str:
    bounds = [
        f"{word} {getattr(each, type(each).__name__.lower())}"
        for each in field.metadata
        for kind, word in _BOUNDS.items()
        if isinstance(each, kind)
    ]
    bounds += [f"at least {each.min_length}" for each in field.metadata if isinstance(each, MinLen)]
    bounds += [f"matching `{pattern}`" for each in field.metadata if (pattern := getattr(each, "pattern", None))]
    return ", ".join([_kind(field.annotation), *bounds])


def _kind(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("nothing" if each is type(None) else _kind(each) for each in arguments)
    if origin in (list, tuple):
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return "mapping"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(kind, str(kind))


if __name__ == "__main__":
    print(page(), end="")

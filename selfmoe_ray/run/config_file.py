"""A run's settings from a YAML file and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.errors import UserError


def load_config(path: str, overrides: list[str] = ()) -> RunConfig:  # type: ignore[assignment]
    """Read a YAML config and apply `a.b=value` overrides (values are YAML).

    Raises UserError that names the field, what was found and what would be right.
    """
    import yaml

    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UserError(f"--config: cannot read {path!r}: {error.strerror}") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return parse_config(values, path)


def _apply(values: dict[str, Any], override: str) -> None:
    import yaml

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set: expected key=value, found {override!r}")
    *folders, leaf = key.split(".")
    for folder in folders:
        values = values.setdefault(folder, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: {folder!r} is a value, not a section")
    try:
        values[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: {text!r} is not valid YAML") from None

"""The page of settings is that of today's settings, and none is without a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from selfmoe_ray.commands.configuration import page
from selfmoe_ray.config import RunConfig, Section
from selfmoe_ray.serving.config import ServeArgs

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""


@pytest.mark.parametrize("section", [RunConfig, ServeArgs])
def test_every_setting_has_a_sentence_and_stands_on_the_page(section: type[Section]) -> None:
    text = PAGE.read_text()
    for name, sentence in fields(section):
        assert sentence.endswith("."), name
        assert f"| `{name}` |" in text and sentence in text.replace("\\|", "|").replace("&lt;", "<"), name


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "make docs"


def test_no_cell_is_taken_for_html() -> None:
    assert "<" not in PAGE.read_text()


def test_what_a_value_must_match_is_shown() -> None:
    assert "| `run_name` | `run` | text, matching `^[A-Za-z0-9][A-Za-z0-9._-]*$` |" in PAGE.read_text()

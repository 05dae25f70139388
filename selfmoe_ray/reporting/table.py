"""One table of typed cells: HTML by the template's macro, CSV and a terminal's text here."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Value = str | int | float | None
# In a column with parts: the value and its parts; None where there is none of them.
Cell = Value | tuple[Value, ...]
Marks = frozenset[tuple[int, int]]
INTERVAL = ("low", "high")


def signed(value: float) -> str:
    """With its sign, and a minus of the width of a plus."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def visible(text: str) -> str:
    """A token with its spaces and line ends made visible."""
    return text.replace(" ", "\N{MIDDLE DOT}").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


FORMATS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "token": visible,
    "integer": "{:,}".format,
    "decimal": "{:.3f}".format,
    "difference": signed,
    "percent": "{:.1%}".format,
    "score": lambda share: f"{100 * share:.1f}",
    "spread": lambda share: f"{100 * share:.2f}",
    "points": points,
    "share": "{:.3%}".format,
    "seconds": "{:,.1f}".format,
    "bits": "{:.2f}".format,
}


@dataclass(frozen=True)
class Column:
    """A heading and how its cells are shown (a key of FORMATS); CSV keeps the plain value.

    parts: of a value, each in a CSV column of its own; the first two are the ends of its 95% interval. note: below
    the page's heading.
    """

    title: str
    kind: str = "text"
    parts: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_number(self) -> bool:
        """Whether its cells are aligned as numbers."""
        return self.kind not in ("text", "token")


@dataclass(frozen=True)
class Table:
    """`name` is the CSV's file name. marked: cells (row, column) in bold, aligned: underlined. reference: rows
    set apart. grouped: rows of one first cell stand together."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    marked: Marks = frozenset()
    reference: frozenset[int] = frozenset()
    aligned: Marks = frozenset()
    grouped: bool = False

    def values(self, row: int, column: int) -> tuple[Value, ...]:
        """A cell's value and its column's parts."""
        cell = self.rows[row][column]
        return cell if isinstance(cell, tuple) else (cell, *(None for _ in self.columns[column].parts))

    def shown(self, row: int, column: int, missing: str = "–") -> str:
        """A cell's value as text."""
        value = self.values(row, column)[0]
        return missing if value is None else FORMATS[self.columns[column].kind](value)

    def interval(self, row: int, column: int) -> str:
        """A cell's interval as text; "" where there is none."""
        ends = self.values(row, column)[1:3]
        return "" if None in ends else " .. ".join(map(FORMATS[self.columns[column].kind], ends))

    def starts_group(self, row: int) -> bool:
        """Whether a row is set off from the one above it."""
        return self.grouped and row > 0 and self.rows[row][0] != self.rows[row - 1][0]

    def to_csv(self) -> str:
        """The headings and the plain values; an empty cell where there is none."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            title for column in self.columns for title in (column.title, *(f"{column.title} {p}" for p in column.parts))
        )
        for row in range(len(self.rows)):
            writer.writerow(value for column in range(len(self.columns)) for value in self.values(row, column))
        return stream.getvalue()

    def to_text(self) -> str:
        """Aligned lines for a terminal, a blank one between groups; an interval stands in a column of its own."""
        aligns = ["<>"[column.is_number] for column in self.columns for _ in range(1 + bool(column.parts))]
        titles = [
            title for column in self.columns for title in (column.title, *(["95% interval"] if column.parts else []))
        ]
        lines = [titles, *(self._texts(row) for row in range(len(self.rows)))]
        widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
        shown = []
        for row, line in enumerate(lines, start=-1):
            cells = (f"{text:{align}{width}}" for text, align, width in zip(line, aligns, widths, strict=True))
            shown.append("\n" * self.starts_group(row) + "  ".join(cells).rstrip())
        # A number that is searched for or copied has a hyphen there.
        return "\n".join(shown).replace("\N{MINUS SIGN}", "-")

    def _texts(self, row: int) -> list[str]:
        return [
            text
            for place, column in enumerate(self.columns)
            for text in (self.shown(row, place, ""), *([self.interval(row, place)] if column.parts else []))
        ]

    @property
    def data_uri(self) -> str:
        """The CSV as a link that works in a page without its folder."""
        return f"data:text/csv;base64,{base64.b64encode(self.to_csv().encode()).decode()}"


def best(rows: Sequence[Sequence[Cell]], columns: Sequence[int], of: Callable[[list[float]], float] = max) -> Marks:
    """The places (row, column) of each column's largest number (of=min: smallest), all that are equal to it."""
    marked: set[tuple[int, int]] = set()
    for column in columns:
        cells = [row[column] for row in rows]
        values = [cell[0] if isinstance(cell, tuple) else cell for cell in cells]
        chosen = of([value for value in values if isinstance(value, float)] or [math.nan])
        marked |= {(row, column) for row, value in enumerate(values) if value == chosen}
    return frozenset(marked)

"""One table as CSV and as a terminal's text; tests/reporting/test_page.py has it as HTML."""

from __future__ import annotations

import csv
import io

from selfmoe_ray.reporting.table import INTERVAL, Column, Table, best

TABLE = Table(
    "t",
    "caption",
    [Column("a, b"), Column("n", "integer"), Column("minus", "points", INTERVAL)],
    [['say "x"', 1000, (2 / 3, 0.5, 1.0)], ['say "x"', 2, (-0.25, None, None)], ["y", None, None]],
    grouped=True,
)


def test_csv_keeps_whole_values_and_has_a_column_for_each_part() -> None:
    assert list(csv.reader(io.StringIO(TABLE.to_csv()))) == [
        ["a, b", "n", "minus", "minus low", "minus high"],
        ['say "x"', "1000", str(2 / 3), "0.5", "1.0"],
        ['say "x"', "2", "-0.25", "", ""],
        ["y", "", "", "", ""],
    ]


def test_the_page_rounds_and_shows_what_is_missing() -> None:
    assert [TABLE.shown(0, 2), TABLE.interval(0, 2)] == ["+66.7", "+50.0 .. +100.0"]
    assert [TABLE.shown(1, 2), TABLE.interval(1, 2)] == ["−25.0", ""]
    assert [TABLE.shown(2, 2), TABLE.interval(2, 2), TABLE.interval(0, 1)] == ["–", "", ""]


def test_a_terminal_gets_aligned_lines_and_a_blank_one_between_groups() -> None:
    assert TABLE.to_text().splitlines() == [
        "a, b         n  minus     95% interval",
        'say "x"  1,000  +66.7  +50.0 .. +100.0',
        'say "x"      2  -25.0',
        "",
        "y",
    ]


def test_the_best_are_all_that_are_equal_and_nothing_where_no_number_is() -> None:
    rows = [["x", (0.2, 0.1, 0.3), None], ["y", (0.3, 0.1, 0.5), None], ["z", 0.3, None], ["w", None, None]]
    assert best(rows, [1, 2]) == {(1, 1), (2, 1)}
    assert best(rows, [1, 2], min) == {(0, 1)}

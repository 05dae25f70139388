from __future__ import annotations

import pytest

from selfmoe_ray.run.records import Completion, Example, Instruction, Reject, Seed, from_table, to_table


@pytest.mark.parametrize("row_type", [Seed, Instruction, Example, Completion, Reject])
def test_tables_round_trip(row_type: type) -> None:
    row = row_type(*[3 if kind == "int" else "ü" for kind in row_type.__annotations__.values()])
    assert from_table(to_table([row, row], row_type), row_type) == [row, row]
    assert to_table([], row_type).num_rows == 0

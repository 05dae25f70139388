"""The rows that travel between stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

Phase = Literal["brainstorm", "respond"]


@dataclass(frozen=True)
class Seed:
    """One human-written task with its answer."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Instruction:
    """A task that the base model brainstormed; `id` is `<domain>/<round>/<part>/<row>`."""

    id: str
    domain: str
    instruction: str
    input: str


@dataclass(frozen=True)
class Example:
    """A training row: an instruction with the response to learn; seeds have ids `<domain>/seed/<n>`."""

    id: str
    domain: str
    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Completion:
    """What the engine returned for one prompt, kept raw so that parsing is repeatable.

    `error` is empty unless the engine failed on this row; token counts are in tokens.
    """

    id: str
    domain: str
    phase: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    error: str


@dataclass(frozen=True)
class Reject:
    """A completion that was not used, and why."""

    id: str
    domain: str
    phase: str
    reason: str
    text: str


Row = TypeVar("Row", Seed, Instruction, Example, Completion, Reject)


def arrow_schema(row_type: type) -> pa.Schema:
    """The Arrow schema of a record type; every field is a non-null string or int64."""
    import pyarrow as pa

    kinds = {"str": pa.string(), "int": pa.int64()}
    return pa.schema([pa.field(name, kinds[kind], nullable=False) for name, kind in row_type.__annotations__.items()])


def to_table(rows: list[Any], row_type: type) -> pa.Table:
    """Rows of one record type as an Arrow table (an empty list gives an empty table)."""
    import pyarrow as pa

    return pa.Table.from_pylist([asdict(row) for row in rows], schema=arrow_schema(row_type))


def from_table(table: pa.Table, row_type: type[Row]) -> list[Row]:
    """The inverse of `to_table`."""
    return [row_type(**row) for row in table.to_pylist()]

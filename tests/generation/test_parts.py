from __future__ import annotations

import random
from typing import Any

import pytest

from selfmoe_ray.generation import parts as assembly
from selfmoe_ray.generation.domain_state import Part, Prompt
from selfmoe_ray.generation.parts import PartAssembler, Progress
from selfmoe_ray.run.records import Completion, Phase


def make_part(domain: str, phase: Phase, number: int, size: int) -> Part:
    ids = [f"{domain}/000/{number:04d}/{row:04d}" for row in range(size)]
    return Part(domain, phase, f"000-{number:04d}", tuple(Prompt(id, "text", 0) for id in ids))


def completions_of(part: Part) -> list[Completion]:
    return [Completion(prompt.id, part.domain, part.phase, "text", "stop", 3, 2, "") for prompt in part.prompts]


# The two phases of one task share its id.
PARTS = [
    make_part("math", "brainstorm", 0, 5),
    make_part("math", "respond", 0, 5),
    make_part("math", "respond", 1, 1),
    make_part("coding", "brainstorm", 0, 4),
]


def test_parts_come_out_whole_and_in_prompt_order() -> None:
    rows = [row for part in PARTS for row in completions_of(part)]
    random.Random(0).shuffle(rows)
    assembler = PartAssembler(PARTS)
    finished = [each for row in rows for each in assembler.add([row])]
    assert sorted(part.id + part.phase + part.domain for part, _ in finished) == sorted(
        part.id + part.phase + part.domain for part in PARTS
    )
    for part, completions in finished:
        assert completions == completions_of(part)
    assert not assembler.unfinished


def test_a_part_waits_for_its_last_row() -> None:
    assembler = PartAssembler(PARTS)
    rows = completions_of(PARTS[0])
    assert list(assembler.add(rows[1:])) == []
    assert assembler.unfinished == PARTS
    assert list(assembler.add(rows[:1])) == [(PARTS[0], rows)]
    assert assembler.unfinished == PARTS[1:]


def test_parts_keep_their_name_and_their_prompts_order_when_some_are_given_again() -> None:
    assembler = PartAssembler(PARTS)
    keys = [(part.phase, part.prompts[row].id) for part, row in ((PARTS[0], 1), (PARTS[0], 4), (PARTS[1], 0))]
    found = assembler.parts_of(keys)
    assert [(part.phase, part.id) for part in found] == [("brainstorm", "000-0000"), ("respond", "000-0000")]
    assert [part.prompts for part in found] == [
        (PARTS[0].prompts[1], PARTS[0].prompts[4]),
        (PARTS[1].prompts[0],),
    ]


def test_a_prompt_that_is_given_up_completes_its_part_with_an_error() -> None:
    assembler = PartAssembler(PARTS)
    lost = assembler.without_answer(("respond", PARTS[2].prompts[0].id), "killed")
    assert list(assembler.add([lost])) == [(PARTS[2], [lost])]
    assert lost.error == "killed" and lost.domain == "math" and lost.phase == "respond"


def test_the_last_report_counts_each_phase_and_domain() -> None:
    events: list[dict[str, Any]] = []
    progress = Progress(PARTS, lambda kind, **fields: events.append(fields))
    progress.report()
    progress.add(completions_of(PARTS[1]))
    progress.report(is_last=True)
    progress.report(is_last=True)
    assert len(events) == 1
    assert events[0]["brainstorm.math"] == "0/5"
    assert events[0]["respond.math"] == "5/6"
    assert events[0]["brainstorm.coding"] == "0/4"


def test_a_report_tells_the_seconds_left_once_there_is_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(assembly.time, "monotonic", lambda: now)
    events: list[dict[str, Any]] = []
    progress = Progress(PARTS, lambda kind, **fields: events.append(fields))
    now = 20.0
    progress.report()
    progress.add(completions_of(PARTS[0]))
    now = 30.0
    progress.add(completions_of(PARTS[1]))
    progress.report()
    assert events[0]["message"] == "waiting for the engines' first answers"
    # Five rows in the ten seconds since the first came, and five of fifteen are missing.
    assert events[1]["seconds_left"] == 10

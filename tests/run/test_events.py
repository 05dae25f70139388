from __future__ import annotations

import json

from selfmoe_ray.run.events import EventLog, render


def test_an_event_is_one_json_line_and_one_readable_line() -> None:
    lines: list[str] = []
    shown: list[str] = []
    EventLog(lines.append, shown.append)("experts", domain="math", step=3, loss=1.23456)
    event = json.loads(lines[0])
    assert lines[0].endswith("\n") and event.pop("time") > 0
    assert event == {"kind": "experts", "domain": "math", "step": 3, "loss": 1.23456}
    assert shown == ["  0:00  experts    domain=math step=3 loss=1.235"]


def test_messages_come_first() -> None:
    assert render(75, "router", {"message": "begins"}) == "  1:15  router     begins"


def test_counts_have_a_bar() -> None:
    shown = render(0, "generate", {"message": "completions", "brainstorm.math": "24/48", "respond.math": "0/0"})
    assert shown == "  0:00  generate   completions  brainstorm.math=[###---]24/48 respond.math=[------]0/0"
    assert "step=[######]40/40" in render(0, "router", {"step": "40/40"})
    assert "other=a/1" in render(0, "router", {"other": "a/1"})

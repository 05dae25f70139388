"""A model name stands for a gate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from selfmoe_ray.serving.http.errors import Refused
from selfmoe_ray.serving.http.names import ModelNames

NAMES = ModelNames("demo", ("math", "coding"))


def chosen(model: str | None, xargs: dict[str, Any] | None = None) -> tuple[str, dict[str, Any] | None]:
    request = SimpleNamespace(model=model, vllm_xargs=xargs)
    NAMES.choose_gate(request)
    return request.model, request.vllm_xargs


@pytest.mark.parametrize(
    ("model", "name", "xargs"),
    [
        (None, "demo", None),
        ("demo", "demo", None),
        ("demo/base", "demo/base", {"mixse_gate": "base"}),
        ("demo/math", "demo/math", {"mixse_gate": "math"}),
    ],
)
def test_each_name_has_its_gate(model: str | None, name: str, xargs: dict[str, Any] | None) -> None:
    assert chosen(model) == (name, xargs)


def test_a_gate_that_the_request_names_stays() -> None:
    assert chosen("demo/math", {"mixse_gate": "top2"})[1] == {"mixse_gate": "top2"}
    assert chosen("demo/math", {"mixse_routing": "mean"})[1] == {"mixse_gate": "math", "mixse_routing": "mean"}


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Refused, match="known: demo, demo/base, demo/math, demo/coding") as caught:
        chosen("demo/poetry")
    assert caught.value.status == 404


def test_cards_tell_names_and_nothing_of_the_machine() -> None:
    cards = NAMES.cards(created=1, max_model_len=256)
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("demo", None),
        ("demo/base", "demo"),
        ("demo/math", "demo"),
        ("demo/coding", "demo"),
    ]
    assert set(cards[0]) == {"id", "object", "created", "owned_by", "parent", "max_model_len"}

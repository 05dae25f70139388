"""The systems that an evaluation takes by name are gates that the engine takes."""

from __future__ import annotations

import pytest

from selfmoe_ray.config import RunConfig
from selfmoe_ray.engine.vllm_plugin.gates import parse_gate
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.systems import select_systems
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.mixture.systems import requested_gates

CONFIG = RunConfig(domains=["math", "coding"])
SPEC = MixtureSpec(experts=("math", "coding"), ranks=(2, 2), alphas=(4.0, 4.0))


def test_every_system_has_a_gate_of_the_engine() -> None:
    gates = {system: parse_gate(gate, SPEC) for system, gate in requested_gates(SPEC).items()}
    assert gates["all"] == gates["top2"] != gates["mixse"] == gates["top1"]
    assert gates["expert-coding"].weights == (0.0, 1.0)


def test_systems_are_chosen_by_name() -> None:
    chosen = select_systems(["mixse", "experts", "base", "ties", "joint"], SPEC, CONFIG)
    assert {name: (system.gate, system.mixture) for name, system in chosen.items()} == {
        "mixse": ("router", "mixse"),
        "expert-math": ("math", "mixse"),
        "expert-coding": ("coding", "mixse"),
        "base": ("base", "mixse"),
        "ties": ("ties", "merged"),
        "joint": ("router", "variants/joint/mixse"),
    }
    assert [name for name, system in chosen.items() if system.variant] == ["joint"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["base", "expert-maths"], r"no system 'expert-maths'; did you mean expert-math"),
        (["joined"], r"no system 'joined'; did you mean joint"),
        ([], "no system is named"),
    ],
)
def test_unknown_systems_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select_systems(names, SPEC, CONFIG)

"""The systems that an evaluation takes by name are gates that the engine takes."""

from __future__ import annotations

import pytest

from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.systems import requested_gates, select_systems
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.serving.vllm_plugin.gates import parse_gate

SPEC = MixtureSpec(experts=("math", "coding"), ranks=(2, 2), alphas=(4.0, 4.0))


def test_every_system_has_a_gate_of_the_engine() -> None:
    gates = {system: parse_gate(gate, SPEC) for system, gate in requested_gates(SPEC).items()}
    assert gates["all"] == gates["top2"] != gates["mixse"] == gates["top1"]
    assert gates["expert-coding"].weights == (0.0, 1.0)


def test_systems_are_chosen_by_name() -> None:
    assert select_systems(["mixse", "experts", "base", "ties"], SPEC) == {
        "mixse": "router",
        "expert-math": "math",
        "expert-coding": "coding",
        "base": "base",
        "ties": "ties",
    }
    with pytest.raises(UserError, match=r"no system 'expert-maths'; did you mean expert-math"):
        select_systems(["base", "expert-maths"], SPEC)
    with pytest.raises(UserError, match="no system is named"):
        select_systems([], SPEC)

"""The systems that are compared: each is the same resident model under another gate."""

from __future__ import annotations

from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.spec import MixtureSpec

BASE = "base"
UNIFORM = "uniform"
RANDOM = "random"
MIXSE = "mixse"
MIXSE_FITTED = "mixse-fitted"
ORACLE = "oracle"
ALL = "all"
# Stands for the systems of all experts.
EXPERTS = "experts"


def expert_system(expert: str) -> str:
    """The name of the system that uses one expert for every token."""
    return f"expert-{expert}"


def systems(spec: MixtureSpec) -> dict[str, Gate]:
    """Every system that needs a pass of its own, by name, in the order of the report's tables.

    The own-domain oracle is missing: on the rows of a domain it is that domain's expert, to the bit.
    """
    experts = {expert_system(name): Gate.expert(index) for index, name in enumerate(spec.experts)}
    return {
        BASE: Gate.off(),
        **experts,
        UNIFORM: Gate.uniform(),
        RANDOM: Gate.random(1),
        MIXSE: Gate.router(spec.num_experts_per_tok),
    }


def requested_gates(spec: MixtureSpec) -> dict[str, str]:
    """The systems that a vLLM engine runs, with the `mixse_gate` of their requests, in the tables' order."""
    experts = {expert_system(name): name for name in spec.experts}
    top = {f"top{k}": f"top{k}" for k in range(1, len(spec.experts) + 1)}
    mixed = {UNIFORM: "uniform", RANDOM: "random", MIXSE: "router", **top, ALL: f"top{len(spec.experts)}"}
    return {BASE: "base", **experts, **mixed}

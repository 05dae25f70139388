"""The systems that are compared: each is the same resident model under another gate."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.merging import METHODS
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
    return {BASE: "base", **experts, UNIFORM: "uniform", MIXSE: "router", **top, ALL: f"top{len(spec.experts)}"}


def select_systems(names: Sequence[str], spec: MixtureSpec) -> dict[str, str]:
    """Systems by name, with their gates, each once; "experts" stands for every expert.

    TIES and DARE are gates of the mixture of merges (`mixture.merging`), all others of the run's own.
    Raises UserError for an unknown name, with the nearest that there are.
    """
    known = requested_gates(spec) | {method: method for method in METHODS}
    chosen: dict[str, str] = {}
    for name in names:
        if name == EXPERTS:
            chosen |= {expert_system(expert): expert for expert in spec.experts}
        elif name in known:
            chosen[name] = known[name]
        else:
            near = difflib.get_close_matches(name, [*known, EXPERTS], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join([*known, EXPERTS])}"
            raise UserError(f"--systems: no system {name!r}; {hint}")
    if not chosen:
        raise UserError(f"--systems: no system is named; there are {', '.join([*known, EXPERTS])}")
    return chosen

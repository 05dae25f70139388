"""The systems that are compared: each is the same resident model under another gate."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from selfmoe_ray.config import RunConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.evaluation.variants import INSTANCE, Variant, find_variant
from selfmoe_ray.evaluation.variants import NAMES as VARIANTS
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.merging import METHODS
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.run_dir import RunDir

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


@dataclass(frozen=True)
class System:
    """What a name stands for: the gate of its requests, and the folder in the run of the mixture that has it."""

    gate: str
    mixture: str = RunDir.MIXSE
    variant: Variant | None = None


def select_systems(names: Sequence[str], spec: MixtureSpec, config: RunConfig) -> dict[str, System]:
    """Systems by name, each once; "experts" stands for every expert. spec, config: the run's.

    Raises UserError for an unknown name, with the nearest that there are.
    """
    known = {name: System(gate) for name, gate in requested_gates(spec).items()}
    known |= {method: System(method, RunDir.MERGED) for method in METHODS}
    chosen: dict[str, System] = {}
    for name in names:
        if name == EXPERTS:
            chosen |= {system: known[system] for system in map(expert_system, spec.experts)}
        elif name in known:
            chosen[name] = known[name]
        elif variant := find_variant(name, config, spec.experts):
            chosen[name] = System("router", f"{RunDir.variant(name)}/{RunDir.MIXSE}", variant)
        else:
            raise UserError(f"--systems: no system {name!r}; {_hint(name, [*known, EXPERTS, *VARIANTS])}")
    if not chosen:
        raise UserError(f"--systems: no system is named; there are {', '.join([*known, EXPERTS, *VARIANTS])}")
    return chosen


def system_order(spec: MixtureSpec) -> list[str]:
    """The order of the tables: merges and variants before MiXSE."""
    gates = list(requested_gates(spec))
    place = gates.index(MIXSE)
    return [*gates[:place], INSTANCE, *METHODS, *gates[place:]]


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"

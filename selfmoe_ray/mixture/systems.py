"""The systems that are compared: their names, what each is as a gate, and how reports call it.

Most are the run's own mixture under another gate; the others are mixtures that were merged or trained otherwise.
"""

from __future__ import annotations

import re
from typing import Literal

from selfmoe_ray.mixture import gate
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.spec import MixtureSpec

BASE, UNIFORM, RANDOM = gate.BASE, gate.UNIFORM, gate.RANDOM
MIXSE = "mixse"
# The router as it is between its fit to the domain labels and the LM loss.
MIXSE_FITTED = "mixse-fitted"
ORACLE = "oracle"
ALL = "all"
# Stands for the systems of all experts.
EXPERTS = "experts"
_EXPERT = "expert-"

# One merged expert, made of the run's.
Merge = Literal["ties", "dare"]
MERGES: tuple[Merge, ...] = ("ties", "dare")

# Mixtures trained otherwise on the run's data: one expert on all rows, experts and router at once, on seeds alone,
# of the first so many experts, and on so many percent of the synthetic rows (MiXSE, instance merging).
INSTANCE, JOINT, SEEDS, FIRST, DATA = "instance", "joint", "seeds", "first", "data"
VARIANTS = (INSTANCE, f"{INSTANCE}<percent>", JOINT, SEEDS, f"{FIRST}<m>", f"{DATA}<percent>")

_TOP = "top"
_NUMBERED = re.compile(rf"({_TOP}|{FIRST}|{DATA}|{INSTANCE})([1-9]\d*)")
_TITLES = {
    MIXSE: "MiXSE",
    MIXSE_FITTED: "MiXSE, router only fitted to labels",
    ORACLE: "own domain's expert (oracle)",
    UNIFORM: "uniform gates",
    RANDOM: "a random expert per token",
    INSTANCE: "instance merging",
    "ties": "TIES",
    "dare": "DARE",
    JOINT: "experts and router trained jointly",
    SEEDS: "MiXSE of seeds only",
    ALL: "MiXSE, all experts",
}
_NUMBERED_TITLES = {
    _TOP: "MiXSE, top {}",
    FIRST: "MiXSE of the first {} experts",
    DATA: "MiXSE, {}% of the synthetic data",
    INSTANCE: "instance merging, {}% of the synthetic data",
}

# The paper's benchmarks. A target is what the expert of a built-in domain aims at.
TARGETS = {"mmlu": "knowledge", "bbh": "reasoning", "gsm8k": "math", "humaneval": "coding"}
OTHERS = ("math", "mbpp", "nq", "triviaqa", "hellaswag", "piqa", "truthfulqa")


def expert_system(expert: str) -> str:
    """The name of the system that uses one expert for every token."""
    return f"{_EXPERT}{expert}"


def expert_of(system: str) -> str | None:
    """The inverse of `expert_system`; None for other systems."""
    return system.removeprefix(_EXPERT) if system.startswith(_EXPERT) else None


def split_number(system: str) -> tuple[str, int] | None:
    """("first", 3) of "first3", likewise for top<k>, data<percent> and instance<percent>; None for other names."""
    found = _NUMBERED.fullmatch(system)
    return (found[1], int(found[2])) if found else None


def is_routing(system: str) -> bool:
    """Whether a system is the mixture's experts under another router, or none."""
    return system in (ALL, UNIFORM, RANDOM, JOINT) or (split_number(system) or ("",))[0] == _TOP


def systems(spec: MixtureSpec) -> dict[str, Gate]:
    """Every system that needs a pass of its own, by name, in the order of the report's tables.

    The own-domain oracle is missing: on the rows of a domain it is that domain's expert, to the bit.
    """
    experts = {expert_system(name): Gate.expert(index) for index, name in enumerate(spec.experts)}
    return {
        BASE: Gate.off(),
        **experts,
        UNIFORM: Gate.uniform(),
        RANDOM: Gate.random(),
        MIXSE: Gate.router(spec.num_experts_per_tok),
    }


def requested_gates(spec: MixtureSpec) -> dict[str, str]:
    """The systems that an engine runs, with the name of their requests' gate, in the tables' order."""
    experts = {expert_system(name): name for name in spec.experts}
    top = {gate.top_gate(k): gate.top_gate(k) for k in range(1, len(spec.experts) + 1)}
    mixed = {UNIFORM: gate.UNIFORM, RANDOM: gate.RANDOM, MIXSE: gate.ROUTER, **top}
    return {BASE: gate.BASE, **experts, **mixed, ALL: gate.top_gate(len(spec.experts))}


def system_order(spec: MixtureSpec) -> list[str]:
    """The order of the tables: merges and mixtures trained otherwise before MiXSE."""
    names = list(requested_gates(spec))
    place = names.index(MIXSE)
    return [*names[:place], INSTANCE, *MERGES, *names[place:]]


def system_title(name: str) -> str:
    """How reports call a system."""
    if expert := expert_of(name):
        return f"expert {expert}"
    if numbered := split_number(name):
        return _NUMBERED_TITLES[numbered[0]].format(numbered[1])
    return _TITLES.get(name, name)

"""The systems that an evaluation can be asked for, by name: gates of the run's mixture and of others made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfmoe_ray.config import RunConfig
from selfmoe_ray.errors import UserError, did_you_mean
from selfmoe_ray.evaluation.variants import Variant, find_variant
from selfmoe_ray.mixture.gate import ROUTER
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.mixture.systems import EXPERTS, MERGES, VARIANTS, expert_system, requested_gates
from selfmoe_ray.run.run_dir import RunDir


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
    known |= {method: System(method, RunDir.MERGED) for method in MERGES}
    chosen: dict[str, System] = {}
    for name in names:
        if name == EXPERTS:
            chosen |= {system: known[system] for system in map(expert_system, spec.experts)}
        elif name in known:
            chosen[name] = known[name]
        elif variant := find_variant(name, config, spec.experts):
            chosen[name] = System(ROUTER, f"{RunDir.variant(name)}/{RunDir.MIXSE}", variant)
        else:
            raise UserError(f"--systems: no system {name!r}; {did_you_mean(name, [*known, EXPERTS, *VARIANTS], n=3)}")
    if not chosen:
        raise UserError(f"--systems: no system is named; there are {', '.join([*known, EXPERTS, *VARIANTS])}")
    return chosen

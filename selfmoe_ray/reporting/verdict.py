"""What the first measure says, in sentences, and what a reader must be warned of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfmoe_ray.mixture.systems import BASE, MIXSE, ORACLE, RANDOM, UNIFORM, expert_of, system_title
from selfmoe_ray.reporting.collect import RunFacts
from selfmoe_ray.reporting.table import signed
from selfmoe_ray.reporting.tables import ROW_SETS

# A difference within this many standard errors of zero is called no clear difference.
CLEAR = 2.0


@dataclass(frozen=True)
class Verdict:
    """One row set's: MiXSE's mean NLL, and how it stands to each system it should beat and to the oracle."""

    headline: str
    comparisons: list[str]


def verdict(facts: RunFacts) -> list[Verdict]:
    """One for each row set on which MiXSE and the single experts were measured."""
    row_sets = facts.nll["row_sets"] if facts.nll else {}
    return [_of_row_set(name, row_sets[name]["systems"]) for name in row_sets if _is_complete(row_sets[name])]


def warnings(facts: RunFacts) -> list[str]:
    """What makes the run's numbers worth less than they look."""
    found = []
    collapse = facts.routing["collapse"] if facts.routing else None
    if collapse:
        found.append(
            f"The router has collapsed: at least {collapse['share']:.0%} of every domain's tokens go "
            f"to expert {collapse['expert']}. MiXSE is then little more than that expert; "
            "see training.router.init."
        )
    for domain in facts.domains:
        made = domain.counts.get("examples")
        if made is not None and made < domain.asked:
            found.append(f"Domain {domain.name} has {made:,} of the {domain.asked:,} examples asked for.")
    return found


def best_expert(systems: dict[str, Any]) -> str:
    """The single expert with the lowest mean NLL."""
    experts = [name for name in systems if expert_of(name)]
    return min(experts, key=lambda name: float(systems[name]["mean_nll"]))


def _is_complete(measured: dict[str, Any]) -> bool:
    systems = measured["systems"]
    return MIXSE in systems and any(map(expert_of, systems))


def _of_row_set(row_set: str, systems: dict[str, Any]) -> Verdict:
    ours = systems[MIXSE]["mean_nll"]
    best = best_expert(systems)
    titles = {
        BASE: "the base",
        best: f"the best single expert, {expert_of(best)}",
        UNIFORM: system_title(UNIFORM),
        RANDOM: system_title(RANDOM),
    }
    comparisons = [_comparison(title, systems[name]) for name, title in titles.items() if name in systems]
    if ORACLE in systems:
        oracle = systems[ORACLE]["mean_nll"]
        side = "above" if ours > oracle else "below"
        comparisons.append(f"{abs(ours / oracle - 1):.1%} {side} the own-domain oracle: {oracle:.3f}")
    return Verdict(f"On {ROW_SETS[row_set]}, MiXSE's mean response NLL is {ours:.3f}", comparisons)


def _comparison(title: str, system: dict[str, Any]) -> str:
    difference, error = (system["mixse_minus_mean"][key] for key in ("difference", "standard_error"))
    spread = "" if error is None else f" ± {error:.3f}"
    numbers = f"{system['mean_nll']:.3f}, difference {signed(difference)}{spread}"
    if error is not None and abs(difference) < CLEAR * error:
        return f"not clearly different from {title}: {numbers}"
    return f"{'below' if difference < 0 else 'above'} {title}: {numbers}"

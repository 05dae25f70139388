"""What the first measure says, in sentences, and what a reader must be warned of."""

from __future__ import annotations

from typing import Any

from selfmoe_ray.reporting.collect import RunFacts
from selfmoe_ray.reporting.tables import ROW_SETS, system_title

# A difference within this many standard errors of zero is called no clear difference.
CLEAR = 2.0
COMPARED = ("base", "uniform", "random")


def verdict(facts: RunFacts) -> list[str]:
    """One line a row set: MiXSE's mean NLL against the systems it should beat, and the oracle."""
    if facts.nll is None:
        return []
    row_sets = facts.nll["row_sets"]
    return [
        _line(row_set, row_sets[row_set]["systems"])
        for row_set in row_sets
        if _is_complete(row_sets[row_set])
    ]


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
    experts = [name for name in systems if name.startswith("expert-")]
    return min(experts, key=lambda name: float(systems[name]["mean_nll"]))


def _is_complete(measured: dict[str, Any]) -> bool:
    systems = measured["systems"]
    return "mixse" in systems and any(name.startswith("expert-") for name in systems)


def _line(row_set: str, systems: dict[str, Any]) -> str:
    ours = systems["mixse"]["mean_nll"]
    others = [name for name in (*COMPARED, best_expert(systems)) if name in systems]
    clauses = [_comparison(name, systems[name]) for name in others]
    line = f"On {ROW_SETS[row_set]}, MiXSE's mean NLL is {ours:.3f}: {'; '.join(clauses)}"
    if "oracle" in systems:
        oracle = systems["oracle"]["mean_nll"]
        side = "above" if ours > oracle else "below"
        line += f"; {abs(ours / oracle - 1):.1%} {side} the oracle ({oracle:.3f})"
    return f"{line}."


def _comparison(name: str, system: dict[str, Any]) -> str:
    title = f"the best single one, {system_title(name)}" if name.startswith("expert-") else system_title(name)
    difference, error = (system["mixse_minus_mean"][key] for key in ("difference", "standard_error"))
    spread = "" if error is None else f" ± {error:.3f}"
    shown = f"({system['mean_nll']:.3f}, {difference:+.3f}{spread})"
    if error is not None and abs(difference) < CLEAR * error:
        return f"not clearly different from {title} {shown}"
    return f"{'below' if difference < 0 else 'above'} {title} {shown}"

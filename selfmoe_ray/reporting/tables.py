"""The report's tables of data, training, NLL and routing."""

from __future__ import annotations

import math
from typing import Any

from selfmoe_ray.mixture.systems import MIXSE, ORACLE, system_title
from selfmoe_ray.reporting.collect import PHASES, RunFacts
from selfmoe_ray.reporting.table import Column, Table, Value, best


def yields(facts: RunFacts) -> Table:
    """How much of what was generated is used."""
    rows: list[list[Value]] = []
    for domain in facts.domains:
        phases = [domain.counts.get(phase, {}) for phase in PHASES]
        per_phase = [phase.get(key) for phase in phases for key in ("completions", "valid", "yield")]
        rows.append([domain.name, *per_phase, domain.counts.get("examples"), domain.asked])
    return Table(
        "yields",
        "Completions and what is left of them after parsing and filtering",
        [
            Column("domain"),
            *(
                Column(f"{what} {part}", "percent" if part == "yield" else "integer")
                for what in ("tasks", "answers")
                for part in ("drawn", "valid", "yield")
            ),
            Column("examples", "integer"),
            Column("asked for", "integer"),
        ],
        rows,
    )


def rejects(facts: RunFacts) -> Table:
    """Why completions were not used: a row per phase and reason, a column per domain."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for domain in facts.domains:
        for phase in PHASES:
            for reason, count in domain.counts.get(phase, {}).get("rejected", {}).items():
                counts.setdefault((phase, reason), {})[domain.name] = count
    ordered = sorted(counts, key=lambda key: (PHASES.index(key[0]), -sum(counts[key].values())))
    names = [domain.name for domain in facts.domains]
    rows: list[list[Value]] = [
        [phase, reason, *(counts[phase, reason].get(name, 0) for name in names)] for phase, reason in ordered
    ]
    columns = [Column("phase"), Column("reason"), *(Column(name, "integer") for name in names)]
    return Table("rejects", "Completions that were rejected, by reason", columns, rows)


def nll(facts: RunFacts, row_set: str) -> Table:
    """Mean response NLL of each system on each domain of a row set; lowest of a column marked.

    The own-domain oracle is told each row's domain, so it is set apart and never marked.
    """
    assert facts.nll is not None
    measured = facts.nll["row_sets"][row_set]
    domains = list(measured["rows"])
    systems = [name for name in measured["systems"] if name != ORACLE]
    oracle = [name for name in measured["systems"] if name == ORACLE]
    rows = [_nll_row(name, measured["systems"][name], domains) for name in [*systems, *oracle]]
    return Table(
        f"nll_{row_set}",
        f"Mean response NLL in nats per token, {ROW_SETS[row_set]}; lower is better, the lowest is bold",
        [
            Column("system"),
            *(Column(domain, "decimal", note=f"n {count:,}") for domain, count in measured["rows"].items()),
            Column("mean", "decimal"),
            Column("MiXSE minus it", "difference"),
            Column("standard error", "decimal"),
        ],
        rows,
        best(rows[: len(systems)], range(1, len(domains) + 2), min),
        frozenset(range(len(systems), len(rows))),
    )


ROW_SETS = {
    "all": "all rows that no stage trained on",
    "held_out": "generated examples that were held out",
    "seeds": "human-written seeds that the method did not see",
}


def _nll_row(name: str, system: dict[str, Any], domains: list[str]) -> list[Value]:
    difference = None if name == MIXSE else system["mixse_minus_mean"]
    return [
        system_title(name),
        *(system["nll"].get(domain) for domain in domains),
        system["mean_nll"],
        difference["difference"] if difference else None,
        difference["standard_error"] if difference else None,
    ]


def routing(facts: RunFacts) -> Table:
    """Where each domain's tokens go, over all layers."""
    assert facts.routing is not None
    experts = facts.routing["experts"]
    rows: list[list[Value]] = [
        [name, values["tokens"], *values["top1_share"], *values["mean_gate"], values["entropy_bits"]]
        for name, values in facts.routing["domains"].items()
    ]
    columns = [
        Column("domain"),
        Column("tokens", "integer"),
        *(Column(f"top-1 share {expert}", "percent") for expert in experts),
        *(Column(f"mean gate {expert}", "decimal") for expert in experts),
        Column("entropy (bits)", "bits"),
    ]
    return Table("routing", "Top-1 share and mean gate of each expert, over tokens and layers", columns, rows)


def routing_layers(facts: RunFacts) -> Table:
    """The same by decoder layer."""
    assert facts.routing is not None
    experts = facts.routing["experts"]
    rows: list[list[Value]] = [
        [name, layer, *shares, *gates]
        for name, values in facts.routing["domains"].items()
        for layer, (shares, gates) in enumerate(
            zip(values["layers"]["top1_share"], values["layers"]["mean_gate"], strict=True)
        )
    ]
    columns = [
        Column("domain"),
        Column("layer", "integer"),
        *(Column(f"top-1 share {expert}", "percent") for expert in experts),
        *(Column(f"mean gate {expert}", "decimal") for expert in experts),
    ]
    return Table("routing_layers", "Top-1 share and mean gate of each expert, by layer", columns, rows)


def trace(name: str, caption: str, tokens: list[dict[str, Any]], experts: list[str]) -> Table:
    """A traced text, one row a token."""
    columns = [
        Column("token", "token"),
        Column("top expert"),
        *(Column(f"mean gate {expert}", "decimal") for expert in experts),
    ]
    rows: list[list[Value]] = [[token["text"], experts[token["expert"]], *token["gate"]] for token in tokens]
    return Table(name, caption, columns, rows)


def parameters(facts: RunFacts) -> Table:
    """How small the mixture is."""
    assert facts.parameters is not None
    base, router = facts.parameters["base"], facts.parameters["router"]
    experts = facts.parameters["experts"]
    added = sum(experts.values()) + router
    named = {"base": base, **{f"expert {name}": count for name, count in experts.items()}, "router": router}
    rows: list[list[Value]] = [[name, count, count / base] for name, count in named.items()]
    rows.append(["all that is added", added, added / base])
    columns = [Column("part"), Column("parameters", "integer"), Column("share of the base", "share")]
    return Table("parameters", "Parameters of the base and of what the mixture adds", columns, rows)


def stages(facts: RunFacts) -> Table:
    """Seconds and tokens a second of each finished stage."""
    rows: list[list[Value]] = [
        [
            stage.name,
            stage.seconds,
            stage.tokens,
            stage.tokens / stage.seconds if stage.tokens and stage.seconds else None,
        ]
        for stage in facts.stages
    ]
    rows.append(["all", math.fsum(stage.seconds for stage in facts.stages), None, None])
    columns = [
        Column("stage"),
        Column("seconds", "seconds"),
        Column("tokens", "integer"),
        Column("tokens/s", "seconds"),
    ]
    return Table(
        "stages",
        "Wall-clock time of each stage, and the tokens that it wrote (generate) or read (the others)",
        columns,
        rows,
    )


def losses(facts: RunFacts) -> Table:
    """Training loss at each logged step of every expert and of the router."""
    curves = {**facts.expert_metrics, "router": facts.router_metrics}
    rows: list[list[Value]] = [
        [name, row["step"], row["epoch"], row["loss"]] for name, curve in curves.items() for row in curve
    ]
    columns = [Column("trained"), Column("step", "integer"), Column("epoch", "bits"), Column("loss", "decimal")]
    return Table("losses", "Training loss by step", columns, rows)

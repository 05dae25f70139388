"""One HTML page that opens offline, and a CSV beside it for every table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import load_domains
from selfmoe_ray.reporting import figures, tables
from selfmoe_ray.reporting.benchmark_tables import benchmark_parts
from selfmoe_ray.reporting.collect import RunFacts, collect
from selfmoe_ray.reporting.table import Table
from selfmoe_ray.reporting.verdict import verdict, warnings
from selfmoe_ray.run.run_dir import RunDir

TEMPLATES = Path(__file__).parent / "templates"
# Routing is shown for one row set, the first of these that was measured.
ROUTING_OF = ("held_out", "seeds")


def write_report(config: RunConfig, run_dir: RunDir) -> str:
    """Write `report/index.html` and `report/tables/*.csv`; returns the page's path.

    Every part that the run does not have yet is left out.
    """
    facts = collect(config, load_domains(config.domains), run_dir)
    page, shown = render(facts)
    for table in shown:
        name = f"{run_dir.REPORT}/tables/{table.name}.csv"
        run_dir.storage.write_bytes(name, table.to_csv().encode())
    run_dir.storage.write_bytes(f"{run_dir.REPORT}/index.html", page.encode())
    return run_dir.storage.path(f"{run_dir.REPORT}/index.html")


def render(facts: RunFacts) -> tuple[str, list[Table]]:
    """The page's HTML, and the tables that it shows. Everything written by a model or user is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    context = {
        **_overview(facts),
        **_measure(facts),
        **benchmark_parts(facts),
        **_routing(facts),
        **_data(facts),
        **_training(facts),
        "stages_table": tables.stages(facts),
    }
    context["sections"] = _sections(facts, context)
    page = environment.get_template("report.html.j2").render(facts=facts, series=figures.SERIES, **context)
    return page, _tables(context)


def _tables(value: Any) -> list[Table]:
    if isinstance(value, Table):
        return [value]
    if isinstance(value, dict):
        return [table for each in value.values() for table in _tables(each)]
    if isinstance(value, list):
        return [table for each in value for table in _tables(each)]
    return []


def _sections(facts: RunFacts, context: dict[str, Any]) -> dict[str, str]:
    titles = {
        "measure": ("What the mixture is worth", facts.nll),
        "benchmarks": ("Benchmarks", context["benchmark_table"]),
        "benchmark_routing": ("Where the tokens of benchmarks go", context["benchmark_shares"]),
        "routing": ("Where tokens go", facts.routing),
        "passages": ("Token by token", context["traced_answers"] or context["traced_passages"]),
        "data": ("Generated data", any(domain.counts for domain in facts.domains)),
        "training": ("Training", context["losses_table"].rows),
        "time": ("Time", True),
        "provenance": ("Provenance", True),
    }
    return {name: title for name, (title, present) in titles.items() if present}


def _overview(facts: RunFacts) -> dict[str, Any]:
    names = [domain.name for domain in facts.domains]
    examples = sum(domain.counts.get("examples", 0) for domain in facts.domains)
    summary = {
        "Base model": facts.config.base_model,
        "Domains": ", ".join(names),
        "Examples": f"{examples:,} generated and kept",
        "Finished stages": ", ".join(stage.name for stage in facts.stages) or "none",
    }
    if facts.parameters:
        base = facts.parameters["base"]
        experts, router = facts.parameters["experts"].values(), facts.parameters["router"]
        summary["Parameters"] = (
            f"{base:,} in the base; each expert adds {max(experts) / base:.2%}, "
            f"the router {router / base:.2%}, all {(sum(experts) + router) / base:.2%}"
        )
    return {
        "names": names,
        "summary": summary,
        "warnings": warnings(facts),
        "verdict": verdict(facts),
        "provenance": {name: _flat(value) for name, value in facts.provenance.items()},
        "config_yaml": yaml.safe_dump(facts.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    }


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(each)}" for name, each in value.items())
    return ", ".join(map(_flat, value)) if isinstance(value, list) else str(value)


def _measure(facts: RunFacts) -> dict[str, Any]:
    row_sets = facts.nll["row_sets"] if facts.nll else {}
    return {"nll_tables": [tables.nll(facts, row_set) for row_set in row_sets]}


def _routing(facts: RunFacts) -> dict[str, Any]:
    if facts.routing is None:
        return {"experts": [], "traced_answers": [], "traced_passages": []}
    experts = facts.routing["experts"]
    return {
        "experts": experts,
        "shares": {name: values["top1_share"] for name, values in facts.routing["domains"].items()},
        "routing_row_set": tables.ROW_SETS[facts.routing["row_set"]],
        "layer_figures": {
            name: figures.layer_heat_map(values["layers"]["top1_share"], experts, f"Routing by layer, {name}")
            for name, values in facts.routing["domains"].items()
        },
        "routing_table": tables.routing(facts),
        "routing_layers_table": tables.routing_layers(facts),
        "traced_answers": [_traced_answer(answer, experts) for answer in facts.answers],
        "traced_passages": [_traced("reference", passage, experts) for passage in facts.passages],
    }


def _traced(kind: str, traced: dict[str, Any], experts: list[str]) -> dict[str, Any]:
    domain, tokens = traced["domain"], traced["tokens"]
    table = tables.trace(f"{kind}_{domain}", f"Tokens and gates, {kind}, {domain}", tokens, experts)
    return {"domain": domain, "tokens": tokens, "table": table}


def _traced_answer(answer: dict[str, Any], experts: list[str]) -> dict[str, Any]:
    task = "\n\n".join(part for part in (answer["instruction"], answer["input"]) if part)
    end = "to its end" if answer["finished"] else "cut at the limit of new tokens"
    note = f"Greedy, {end}; the task is {answer['row']}, which no stage trained on."
    return {**_traced("answer", answer, experts), "task": task, "note": note}


def _data(facts: RunFacts) -> dict[str, Any]:
    bars = {domain.name: _destinations(domain.counts) for domain in facts.domains if domain.counts}
    parts = list(next(iter(bars.values()), {}))
    return {
        "yields_table": tables.yields(facts),
        "rejects_table": tables.rejects(facts),
        "yield_figure": figures.stacked_bars(bars, "What became of the tasks that were drawn"),
        "yield_legend": figures.legend(parts, "fill"),
    }


def _destinations(counts: dict[str, Any]) -> dict[str, int]:
    tasks, answers = counts.get("brainstorm", {}), counts.get("respond", {})
    rejected = [phase.get("completions", 0) - phase.get("valid", 0) for phase in (tasks, answers)]
    kept = counts["examples"]
    return {
        "examples": kept,
        "answer rejected": rejected[1],
        "task rejected": rejected[0],
        "not needed": max(0, tasks.get("valid", 0) - kept - rejected[1]),
    }


def _training(facts: RunFacts) -> dict[str, Any]:
    experts = {name: _curve(rows) for name, rows in facts.expert_metrics.items() if rows}
    router = {"router": _curve(facts.router_metrics)}
    fit = _fit_accuracies(facts.label_fit or {})
    return {
        "expert_figure": figures.line_chart(experts, "Loss of each expert by epoch", "epoch", "loss (nats/token)"),
        "expert_curve_legend": figures.legend(list(experts), "line"),
        "router_figure": figures.line_chart(router, "Loss of the router by epoch", "epoch", "loss (nats/token)"),
        "fit_figure": figures.line_chart(fit, "Accuracy of the router's fit by layer", "layer", "accuracy"),
        "fit_legend": figures.legend(list(fit), "line"),
        "losses_table": tables.losses(facts),
        "parameters_table": tables.parameters(facts) if facts.parameters else None,
    }


def _fit_accuracies(label_fit: dict[str, Any]) -> dict[str, list[figures.Point]]:
    lines = {
        "rows fitted to": label_fit.get("train_accuracy"),
        "rows kept back": label_fit.get("held_out_accuracy"),
    }
    return {name: list(enumerate(accuracies)) for name, accuracies in lines.items() if accuracies}


def _curve(rows: list[dict[str, Any]]) -> list[figures.Point]:
    return [(row["epoch"], row["loss"]) for row in rows]

"""The first measure of a mixture: response NLL of every system on each domain, and its routing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfmoe_ray.measure.nll import Batch, batch_nll
from selfmoe_ray.measure.routing_statistics import RoutingStatistics
from selfmoe_ray.measure.statistics import Estimate, mean, mean_over_domains, paired_difference
from selfmoe_ray.mixture.checkpoint import load_router
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.mixse_dir import ROUTER_WEIGHTS
from selfmoe_ray.mixture.model import MixtureModel
from selfmoe_ray.mixture.systems import MIXSE, MIXSE_FITTED, ORACLE, expert_system, systems
from selfmoe_ray.run.events import Emit
from selfmoe_ray.training.worker import FITTED

SECONDS_BETWEEN_EVENTS = 5.0
POOLED = "all"


@dataclass(frozen=True)
class Sample:
    """One system's NLL on one row; `tokens` is the number of response tokens."""

    row_set: str
    domain: str
    row: str
    system: str
    tokens: int
    nll: float


def score(model: MixtureModel, batches: Sequence[Batch], system: str, gate: Gate, emit: Emit) -> list[Sample]:
    """One system's NLL on every row."""
    start, tokens, samples = time.monotonic(), 0, []
    shown = start
    for done, batch in enumerate(batches, start=1):
        for row, nll in zip(batch.rows, batch_nll(model, batch, gate), strict=True):
            samples.append(Sample(batch.row_set, row.domain, row.id, system, row.response_tokens, nll))
        tokens += int(batch.attention_mask.sum())
        now = time.monotonic()
        if done == len(batches) or now - shown > SECONDS_BETWEEN_EVENTS:
            shown = now
            emit(
                "measure",
                system=system,
                batches=f"{done}/{len(batches)}",
                tokens_per_second=round(tokens / (now - start), 1),
                seconds_left=round((now - start) * (len(batches) - done) / done),
            )
    return samples


def score_systems(
    model: MixtureModel, batches: Sequence[Batch], domains: list[str], emit: Emit
) -> tuple[list[Sample], dict[str, RoutingStatistics]]:
    """All systems on one resident model, the oracle included; routing by row set, from MiXSE's own pass.

    Domains are in the report's order; the oracle has the rows whose domain has an expert.
    """
    samples: list[Sample] = []
    routing: dict[str, RoutingStatistics] = {}
    for system, gate in systems(model.spec).items():
        with model.record_gates() if system == MIXSE else nullcontext() as recorded:
            samples += score(model, batches, system, gate, emit)
        for batch, gates in zip(batches, recorded or [], strict=system == MIXSE):
            empty = RoutingStatistics(domains, list(model.spec.experts), gates.shape[0])
            statistics = routing.setdefault(batch.row_set, empty)
            statistics.add([row.domain for row in batch.rows], gates[:, :, :-1], batch.predicts)
    return samples + oracle_samples(samples), routing


def oracle_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The own-domain oracle's rows: those of each domain's own expert."""
    return [
        Sample(sample.row_set, sample.domain, sample.row, ORACLE, sample.tokens, sample.nll)
        for sample in samples
        if sample.system == expert_system(sample.domain)
    ]


def score_fitted_router(model: MixtureModel, batches: Sequence[Batch], folder: Path, emit: Emit) -> list[Sample]:
    """MiXSE with the router as it was between the fit to labels and the LM loss; [] where it was not kept.

    folder: the run's router folder. The model has its own router again afterwards.
    """
    if not (folder / FITTED / ROUTER_WEIGHTS).exists():
        return []
    trained = {name: value.clone() for name, value in model.router.state_dict().items()}
    load_router(model, folder / FITTED)
    try:
        return score(model, batches, MIXSE_FITTED, model.default_gate, emit)
    finally:
        model.router.load_state_dict(trained)


def summarise(samples: Sequence[Sample], domains: list[str]) -> dict[str, Any]:
    """The system x domain table of each row set, with MiXSE minus each other system, paired by row.

    Where there are several row sets, "all" pools their rows and comes first.
    A domain's NLL is the mean over its rows of the row's mean over response tokens; the mean over
    domains counts each domain the same. Its standard error is of the paired difference.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.row_set, []).append(sample)
    if len(groups) > 1:
        groups = {POOLED: list(samples), **groups}
    row_sets = {row_set: _row_set_summary(group, domains) for row_set, group in groups.items()}
    return {"unit": "nats per response token", "domains": domains, "row_sets": row_sets}


def _row_set_summary(samples: Sequence[Sample], domains: list[str]) -> dict[str, Any]:
    table: dict[str, dict[str, dict[str, float]]] = {}
    tokens: dict[str, dict[str, int]] = {}
    for sample in samples:
        table.setdefault(sample.system, {}).setdefault(sample.domain, {})[sample.row] = sample.nll
        tokens.setdefault(sample.domain, {})[sample.row] = sample.tokens
    present = [domain for domain in domains if domain in tokens]
    return {
        "rows": {domain: len(tokens[domain]) for domain in present},
        "tokens": {domain: sum(tokens[domain].values()) for domain in present},
        "systems": {system: _system_summary(rows, table.get(MIXSE, {}), present) for system, rows in table.items()},
    }


def _system_summary(
    rows: dict[str, dict[str, float]], mixse: dict[str, dict[str, float]], domains: list[str]
) -> dict[str, Any]:
    nll = {domain: mean(list(rows[domain].values())) for domain in domains if domain in rows}
    differences = {domain: paired_difference(mixse[domain], rows[domain]) for domain in nll if domain in mixse}
    return {
        "nll": {domain: estimate.mean for domain, estimate in nll.items()},
        "mean_nll": mean_over_domains(list(nll.values())).mean,
        "mixse_minus": {domain: _as_dict(difference) for domain, difference in differences.items()},
        "mixse_minus_mean": _as_dict(mean_over_domains(list(differences.values()))) if differences else None,
    }


def _as_dict(estimate: Estimate) -> dict[str, float | None]:
    return {"difference": estimate.mean, "standard_error": estimate.standard_error}

"""Reads what a run directory holds into plain values; parts that are not there yet are None or empty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.run.records import Example, Reject
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import STAGES

SAMPLES_PER_DOMAIN = 4
PHASES = ("brainstorm", "respond")


@dataclass(frozen=True)
class DomainFacts:
    """One domain's generated data; counts: of its manifest (`PhaseCounts.summary` a phase)."""

    name: str
    covers: str
    asked: int
    counts: dict[str, Any]
    samples: list[Example]
    rejects: list[Reject]


@dataclass(frozen=True)
class StageTime:
    """A finished stage: wall-clock seconds, and the tokens that it read or made (None: not counted)."""

    name: str
    seconds: float
    tokens: int | None


@dataclass(frozen=True)
class RunFacts:
    """All that the page shows.

    label_fit: accuracies [layers] of the router's start (`selfmoe_ray.training.label_fit.FitReport`).
    evaluation, leaked, benchmark_routing, bases: what `selfmoe_ray.evaluation` left in `eval/`.
    """

    run_name: str
    config: RunConfig
    provenance: dict[str, Any]
    domains: list[DomainFacts]
    expert_metrics: dict[str, list[dict[str, Any]]]
    router_metrics: list[dict[str, Any]]
    label_fit: dict[str, Any] | None
    parameters: dict[str, Any] | None
    nll: dict[str, Any] | None
    routing: dict[str, Any] | None
    answers: list[dict[str, Any]]
    passages: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    leaked: dict[str, list[Any]]
    benchmark_routing: dict[str, dict[str, Any]]
    bases: list[dict[str, Any]]
    stages: list[StageTime]


def collect(config: RunConfig, domains: list[Domain], run_dir: RunDir) -> RunFacts:
    """Read a run, finished or not."""
    names = [domain.name for domain in domains]
    measured = run_dir.read_manifest(run_dir.MEASURE)
    traces = _read_json(run_dir, f"{run_dir.MEASURE}/answer.json") if measured else None
    return RunFacts(
        run_name=run_dir.run_name,
        config=config,
        provenance=_read_json(run_dir, run_dir.PROVENANCE) or {},
        domains=[_domain_facts(config, domain, run_dir) for domain in domains],
        expert_metrics={name: _read_jsonl(run_dir, f"{run_dir.expert(name)}/metrics.jsonl") for name in names},
        router_metrics=_read_jsonl(run_dir, f"{run_dir.ROUTER}/metrics.jsonl"),
        label_fit=_read_json(run_dir, f"{run_dir.ROUTER}/fitted/fit.json"),
        parameters=measured["counts"]["parameters"] if measured else None,
        nll=_read_json(run_dir, f"{run_dir.MEASURE}/nll.json") if measured else None,
        routing=_read_json(run_dir, f"{run_dir.MEASURE}/routing.json") if measured else None,
        answers=traces["answers"] if traces else [],
        passages=traces["passages"] if traces else [],
        **_evaluated(run_dir),
        stages=[*_stages(names, run_dir), *_later_stages(run_dir)],
    )


def _evaluated(run_dir: RunDir) -> dict[str, Any]:
    """What was found on benchmarks, unless it was with another mixture than the run has now."""
    names = {"evaluation": "results", "leaked": "leaked", "benchmark_routing": "routing", "bases": "bases"}
    read = {field: _read_json(run_dir, f"eval/{name}.json") for field, name in names.items()}
    is_own = (
        read["evaluation"] is not None
        and run_dir.read_manifest(run_dir.MIXSE) is not None
        and read["evaluation"]["mixture"] == run_dir.manifest_hash(run_dir.MIXSE)
    )
    empty: dict[str, Any] = {"evaluation": None, "leaked": {}, "benchmark_routing": {}, "bases": []}
    return {field: read[field] if is_own and read[field] else empty[field] for field in names}


def _domain_facts(config: RunConfig, domain: Domain, run_dir: RunDir) -> DomainFacts:
    manifest = run_dir.read_manifest(run_dir.data(domain.name))
    return DomainFacts(
        name=domain.name,
        covers=domain.covers,
        asked=config.generation.examples_per_domain,
        counts=manifest["counts"] if manifest else {},
        samples=_spread(run_dir.read_examples(domain.name)) if manifest else [],
        rejects=_one_a_reason(run_dir.read_rejects(domain.name)) if manifest else [],
    )


def _spread(rows: list[Example]) -> list[Example]:
    """A few rows at equal distances, the first among them: no choice of the best."""
    step = max(1, len(rows) // SAMPLES_PER_DOMAIN)
    return rows[::step][:SAMPLES_PER_DOMAIN]


def _one_a_reason(rejects: list[Reject]) -> list[Reject]:
    """The first reject of each phase and reason."""
    first: dict[tuple[str, str], Reject] = {}
    for reject in rejects:
        first.setdefault((reject.phase, reject.reason), reject)
    return list(first.values())


def _stages(names: list[str], run_dir: RunDir) -> list[StageTime]:
    stages = []
    for stage in STAGES[: STAGES.index("report")]:
        folders = run_dir.folders(stage, names)
        manifests = [manifest for folder in folders if (manifest := run_dir.read_manifest(folder))]
        if manifests:
            # Domains and experts are made side by side, so the longest is the stage's wall clock.
            seconds = max(manifest["seconds"] for manifest in manifests)
            tokens = [_tokens(manifest["counts"]) for manifest in manifests]
            counted = [count for count in tokens if count is not None]
            stages.append(StageTime(stage, seconds, sum(counted) if counted else None))
    return stages


def _later_stages(run_dir: RunDir) -> list[StageTime]:
    """Variants and evaluation, which come one after the other: their seconds add up (engines' for evaluation)."""
    list_folders = run_dir.storage.list_folders
    cells = [folder for system in list_folders("eval") for folder in list_folders(system)]
    seconds = {
        "variants": [_variant_seconds(run_dir, folder) for folder in list_folders("variants")],
        "evaluation": _seconds(run_dir, cells),
    }
    return [StageTime(name, math.fsum(of_stage), None) for name, of_stage in seconds.items() if of_stage]


def _variant_seconds(run_dir: RunDir, folder: str) -> float:
    """Its experts, trained side by side, then its router; or both at once."""
    router = run_dir.read_manifest(f"{folder}/{run_dir.ROUTER}")
    experts = max(_seconds(run_dir, run_dir.storage.list_folders(f"{folder}/experts")), default=0.0)
    if router is None:
        return experts
    return float(router["seconds"]) + (0.0 if "jointly" in router["settings"] else experts)


def _seconds(run_dir: RunDir, folders: list[str]) -> list[float]:
    return [manifest["seconds"] for folder in folders if (manifest := run_dir.read_manifest(folder))]


def _tokens(counts: dict[str, Any]) -> int | None:
    if "brainstorm" in counts:
        return sum(counts[phase]["completion_tokens"] for phase in PHASES if phase in counts)
    return counts.get("tokens")


def _read_json(run_dir: RunDir, name: str) -> Any:
    return run_dir.storage.read_json(name) if run_dir.storage.exists(name) else None


def _read_jsonl(run_dir: RunDir, name: str) -> list[dict[str, Any]]:
    return run_dir.storage.read_jsonl(name) if run_dir.storage.exists(name) else []

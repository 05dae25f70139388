"""Where MiXSE sends the tokens of each benchmark, traced on a few of its items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from selfmoe_ray.evaluation.harness import LoadedBenchmark
from selfmoe_ray.run.run_dir import RunDir

ROUTING = "eval/routing.json"
Entry = TypeVar("Entry")


def spread(items: Sequence[Entry], count: int) -> list[Entry]:
    """At most so many, at equal distances."""
    step = max(1, len(items) // count)
    return list(items[::step][:count])


def benchmarks_to_trace(benchmarks: Sequence[LoadedBenchmark], items: int, run_dir: RunDir) -> list[LoadedBenchmark]:
    """Those that have no trace of the run's mixture on so many items yet; none where items is 0."""
    kept, wanted = _read(run_dir), _made_with(items, run_dir)
    return [each for each in benchmarks if items and kept.get(each.benchmark.name, {}).get("made_with") != wanted]


def keep_routing(benchmark: LoadedBenchmark, items: int, routing: dict[str, Any], run_dir: RunDir) -> None:
    """Add what `summarise` gave for a benchmark to the run's file."""
    kept = _read(run_dir)
    kept[benchmark.benchmark.name] = {"made_with": _made_with(items, run_dir), **routing}
    run_dir.storage.write_json(ROUTING, kept)


def summarise(traces: Sequence[np.ndarray], experts: list[str]) -> dict[str, Any]:
    """Tokens, top-1 shares, mean gates and entropy of traces [layers, tokens, n], over layers and by layer.

    See `measure.routing_statistics.RoutingStatistics.summary`; every token counts, those of prompts and of answers.
    """
    import torch

    from selfmoe_ray.measure.routing_statistics import RoutingStatistics

    statistics = RoutingStatistics(["traced"], experts, traces[0].shape[0])
    for trace in traces:
        counted = torch.ones(1, trace.shape[1], dtype=torch.bool)
        statistics.add(["traced"], torch.from_numpy(trace)[:, None], counted)
    found: dict[str, Any] = statistics.summary()["domains"]["traced"]
    return {"experts": experts, "items": len(traces), **found}


def _made_with(items: int, run_dir: RunDir) -> dict[str, Any]:
    return {"mixture": run_dir.manifest_hash(run_dir.MIXSE), "items": items}


def _read(run_dir: RunDir) -> dict[str, Any]:
    return run_dir.storage.read_json(ROUTING) if run_dir.storage.exists(ROUTING) else {}

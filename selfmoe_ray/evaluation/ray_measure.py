"""The measure stage as one Ray task that streams its progress to the driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.events import Emit
from selfmoe_ray.run_dir import RunDir

Event = tuple[str, dict[str, Any]]


def measure(
    config: RunConfig, domains: Sequence[Domain], base: BaseModel, run_dir: RunDir, emit: Emit
) -> None:
    """Measure the run's mixture on one device of the cluster and write `measure/`.

    Takes a GPU where the trainers have them, else all CPUs of one node.
    """
    import ray

    cpus, gpus = _resources(config)
    task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=1)(_measure_events)
    names = [domain.name for domain in domains]
    device = "cuda" if gpus else "cpu"
    for event in task.options(num_returns="streaming").remote(config, names, base.value, run_dir, device):
        kind, fields = ray.get(event)
        emit(kind, **fields)


def _resources(config: RunConfig) -> tuple[float, float]:
    import ray

    asked = config.resources.training.gpus_per_worker
    gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0)) if asked == "auto" else float(asked)
    if gpus:
        return config.resources.training.cpus_per_worker, gpus
    return max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), 0.0


def _measure_events(
    config: RunConfig, domains: list[str], base_model: str, run_dir: RunDir, device: str
) -> Iterator[Event]:
    from selfmoe_ray.evaluation.stage import measure_run

    events: SimpleQueue[Event | None] = SimpleQueue()

    def emit(kind: str, **fields: Any) -> None:
        events.put((kind, fields))

    with ThreadPoolExecutor(max_workers=1) as thread:
        work = thread.submit(measure_run, config, domains, base_model, run_dir, emit, device)
        work.add_done_callback(lambda _: events.put(None))
        yield from iter(events.get, None)
        work.result()

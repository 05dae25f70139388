"""The measure stage as one Ray task that streams its progress to the driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.config import RunConfig
from selfmoe_ray.machines.ray_nodes import read_cluster
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Made, Making
from selfmoe_ray.training.trainers import TrainerPlan, WorkerDevices, worker_devices

Event = tuple[str, dict[str, Any]]
# The last event: what was measured.
_COUNTS = "counts"


def measure(config: RunConfig, domains: Sequence[str], base: BaseModel, run_dir: RunDir, emit: Emit) -> Making:
    """Measure the run's mixture on one device of the cluster, a single trainer's, and write `measure/`.

    Needs a running Ray. Raises UserError where no domain has an unseen row.
    """
    import ray

    devices = worker_devices(config.resources.training, [TrainerPlan((0,), workers=1)], read_cluster())
    task: Any = ray.remote(num_cpus=devices.cpus, num_gpus=devices.gpus, max_retries=1)(_measure_events)
    counts: dict[str, Any] = {}
    for event in task.options(num_returns="streaming").remote(config, domains, base.value, run_dir, devices):
        kind, fields = ray.get(event)
        if kind == _COUNTS:
            counts = fields
        else:
            emit(kind, **fields)
    yield Made(run_dir.MEASURE, counts, devices=1)


def _measure_events(
    config: RunConfig, domains: Sequence[str], base_model: str, run_dir: RunDir, devices: WorkerDevices
) -> Iterator[Event]:
    """Yields the events of `measure_run`, which works in a thread of its own, and then its counts."""
    import torch

    from selfmoe_ray.measure.stage import measure_run

    events: SimpleQueue[Event | None] = SimpleQueue()

    def emit(kind: str, **fields: Any) -> None:
        events.put((kind, fields))

    def work() -> dict[str, Any]:
        torch.set_num_threads(devices.cpus)
        return measure_run(config, domains, base_model, run_dir, emit, "cuda" if devices.gpus else "cpu")

    with ThreadPoolExecutor(max_workers=1) as thread:
        result = thread.submit(work)
        result.add_done_callback(lambda _: events.put(None))
        while (event := events.get()) is not None:
            yield event
        yield _COUNTS, result.result()

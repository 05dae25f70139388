"""A run's numbers as Ray's metrics, which every node offers to Prometheus."""

from __future__ import annotations

from typing import Any

from selfmoe_ray.run.scalars import scalars

PREFIX = "selfmoe_"


class RayMetrics:
    """An Emit that sets a gauge for each number, labelled with the run. Needs a running Ray to be seen."""

    def __init__(self, run_name: str):
        self._run_name = run_name
        self._gauges: dict[str, Any] = {}

    def __call__(self, kind: str, **fields: Any) -> None:
        """Set the gauges of one event."""
        from ray.util.metrics import Gauge

        for scalar in scalars(kind, fields):
            labels = {"run": self._run_name, **scalar.labels}
            if scalar.name not in self._gauges:
                name = f"{PREFIX}{scalar.name}"
                self._gauges[scalar.name] = Gauge(name, f"selfmoe_ray: {scalar.name}", tag_keys=tuple(labels))
            self._gauges[scalar.name].set(scalar.value, tags=labels)

"""Routing totals as Prometheus reads them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from selfmoe_ray.serving.metrics import routing_metrics


class Engine:
    model_config = SimpleNamespace(hf_config=SimpleNamespace(mixse={"experts": ["math", 'a "b"']}))

    async def collective_rpc(self, method: str) -> list[dict[str, Any]]:
        assert method == "mixse_routing_totals"
        return [{"routed": [6.5, 1.5], "gated": 8.0, "tokens": 11, "entropy_bits": 4.0}]


def test_prometheus_reads_the_totals() -> None:
    text = asyncio.run(routing_metrics(Engine(), "mixse"))
    samples = {
        (sample.name, sample.labels.get("expert")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples == {
        ("mixse_expert_tokens_total", "math"): 6.5,
        ("mixse_expert_tokens_total", 'a "b"'): 1.5,
        ("mixse_ungated_tokens_total", None): 3.0,
        ("mixse_routing_entropy_bits_count", None): 8.0,
        ("mixse_routing_entropy_bits_sum", None): 4.0,
    }

"""Where tokens go, for Prometheus, beside vLLM's own metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


async def routing_metrics(engine: Any, model_name: str) -> str:
    """The routing of all tokens since the engine's start, in Prometheus' text format.

    engine: vLLM's EngineClient. To be appended to the text of vLLM's /metrics; the worker keeps the
    sums anyway and is asked only here, once a scrape.

    mixse_expert_tokens_total{expert}: computed tokens, each split over the experts by its gate and
    averaged over layers, so the experts' rates sum to the rate of gated tokens.
    mixse_ungated_tokens_total: tokens under the base's gate.
    mixse_routing_entropy_bits_sum, _count: of a gated token's split, 0 to log2(n): 0 where all layers
    choose one and the same expert.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    totals = (await engine.collective_rpc("mixse_routing_totals"))[0]
    registry = CollectorRegistry()
    registry.register(_Totals(totals, list(engine.model_config.hf_config.mixse["experts"]), model_name))
    return generate_latest(registry).decode()


class _Totals:
    """`RoutingTotals.read` as a collector."""

    def __init__(self, totals: dict[str, Any], experts: list[str], model_name: str):
        self.totals = totals
        self.experts = experts
        self.model_name = model_name

    def collect(self) -> Iterator[Any]:
        """See prometheus_client's Collector."""
        from prometheus_client.core import CounterMetricFamily, SummaryMetricFamily

        totals, model = self.totals, [self.model_name]
        routed = CounterMetricFamily("mixse_expert_tokens", "Tokens by expert.", labels=["model_name", "expert"])
        for expert, tokens in zip(self.experts, totals["routed"], strict=True):
            routed.add_metric([*model, expert], tokens)
        yield routed
        ungated = CounterMetricFamily("mixse_ungated_tokens", "Tokens under the base's gate.", labels=["model_name"])
        ungated.add_metric(model, totals["tokens"] - totals["gated"])
        yield ungated
        entropy = SummaryMetricFamily(
            "mixse_routing_entropy_bits", "Entropy of a token's split over the experts.", labels=["model_name"]
        )
        entropy.add_metric(model, count_value=totals["gated"], sum_value=totals["entropy_bits"])
        yield entropy

"""Where tokens go: shares and mean gates per domain and layer, and collapse."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

COLLAPSED_SHARE = 0.9


class RoutingStatistics:
    """Sums gates over the counted tokens of each domain; float64, so the order of batches is no matter."""

    def __init__(self, domains: list[str], experts: list[str], num_layers: int):
        self.domains = domains
        self.experts = experts
        shape = (len(domains), num_layers, len(experts))
        self._top1 = torch.zeros(shape, dtype=torch.float64)
        self._gates = torch.zeros(shape, dtype=torch.float64)
        self._tokens = torch.zeros(len(domains), dtype=torch.int64)

    def add(self, domains: list[str], gates: Tensor, counted: Tensor) -> None:
        """Count a pass: each row's domain, gates [layers, batch, seq, n], counted [batch, seq] (bool)."""
        gates = gates.detach().to("cpu", torch.float64)
        counted = counted.to("cpu")
        top1 = torch.nn.functional.one_hot(gates.argmax(-1), gates.shape[-1])
        for row, domain in enumerate(domains):
            index, chosen = self.domains.index(domain), counted[row]
            self._top1[index] += top1[:, row, chosen].sum(1)
            self._gates[index] += gates[:, row, chosen].sum(1)
            self._tokens[index] += int(chosen.sum())

    def summary(self) -> dict[str, Any]:
        """Shares of top-1 tokens and mean gates, [experts] and [layers][experts], for each domain seen.

        `entropy_bits`: of the domain's top-1 shares; 0 is one expert, log2(n) an even use of all.
        Gates are as they act: after top-k, not renormalised, so their means need not sum to 1.
        """
        domains: dict[str, Any] = {}
        for index, domain in enumerate(self.domains):
            tokens = int(self._tokens[index])
            if not tokens:
                continue
            top1, gates = self._top1[index] / tokens, self._gates[index] / tokens
            shares = top1.mean(0).tolist()
            domains[domain] = {
                "tokens": tokens,
                "top1_share": shares,
                "mean_gate": gates.mean(0).tolist(),
                "entropy_bits": entropy_bits(shares),
                "layers": {"top1_share": top1.tolist(), "mean_gate": gates.tolist()},
            }
        shares_by_domain = {domain: values["top1_share"] for domain, values in domains.items()}
        return {
            "experts": self.experts,
            "domains": domains,
            "collapse": find_collapse(shares_by_domain, self.experts),
        }


def entropy_bits(shares: list[float]) -> float:
    """Shannon entropy of shares that sum to 1, in bits."""
    return -math.fsum(share * math.log2(share) for share in shares if share > 0)


def find_collapse(shares: dict[str, list[float]], experts: list[str]) -> dict[str, Any] | None:
    """The expert that over 90% of every domain's tokens go to, with the least of these shares; else None.

    shares: by domain, the top-1 share of each expert. One expert or one domain cannot collapse.
    """
    if len(experts) < 2 or len(shares) < 2:
        return None
    for index, expert in enumerate(experts):
        least = min(of_domain[index] for of_domain in shares.values())
        if least > COLLAPSED_SHARE:
            return {"expert": expert, "share": least}
    return None

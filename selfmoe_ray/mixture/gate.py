"""Gates: for each token a vector g of n mixture weights. Every system of the paper is one of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gate:
    """How the tokens of a forward pass are gated; an immutable value made by the class methods."""

    kind: Literal["off", "rows", "uniform", "expert", "random", "router"]
    k: int = 1
    index: int = 0
    seed: int = 0
    weights: Tensor | None = None

    @classmethod
    def off(cls) -> Gate:
        """No expert: the base model, exactly."""
        return cls("off")

    @classmethod
    def expert(cls, index: int) -> Gate:
        """One expert at weight 1 for every token."""
        return cls("expert", index=index)

    @classmethod
    def uniform(cls) -> Gate:
        """Every expert at weight 1/n."""
        return cls("uniform")

    @classmethod
    def random(cls, k: int = 1, seed: int = 0) -> Gate:
        """k random experts at weight 1/k, drawn anew for each token and layer.

        The draw is a hash of token id, position, layer and seed, so it does not depend on the
        batch, and a repeated run repeats it.
        """
        return cls("random", k=k, seed=seed)

    @classmethod
    def router(cls, k: int) -> Gate:
        """The router's top-k probabilities, not renormalised (paper, section 3.2)."""
        return cls("router", k=k)

    @classmethod
    def rows(cls, weights: Tensor) -> Gate:
        """Constant weights [batch, n] for each row; one-hot rows isolate one expert each."""
        return cls("rows", weights=weights)

    def fixed(self, n: int, device: torch.device) -> Tensor | None:
        """The weights [batch or 1, 1, n] where they are known before the pass, else None."""
        if self.kind == "uniform":
            return torch.full((1, 1, n), 1.0 / n, device=device)
        if self.kind == "expert":
            if not 0 <= self.index < n:
                raise IndexError(f"expert {self.index} asked for, the mixture has {n}")
            one_hot = torch.zeros(1, 1, n, device=device)
            one_hot[..., self.index] = 1.0
            return one_hot
        if self.kind == "rows":
            assert self.weights is not None
            if self.weights.dim() != 2 or self.weights.shape[1] != n:
                raise ValueError(f"row gates must be [batch, {n}], found {list(self.weights.shape)}")
            return self.weights.to(device, torch.float32)[:, None, :]
        return None


def top_k(probabilities: Tensor, k: int) -> Tensor:
    """Keep the k largest of the last axis, zero the others; no renormalisation. Same shape."""
    if k >= probabilities.shape[-1]:
        return probabilities
    values, experts = probabilities.topk(k, dim=-1)
    return torch.zeros_like(probabilities).scatter(-1, experts, values)


def random_gates(token_ids: Tensor, positions: Tensor, layer: int, n: int, k: int, seed: int) -> Tensor:
    """Gates [batch, seq, n] of `Gate.random`, from token ids and positions [batch, seq]."""
    experts = torch.arange(n, device=token_ids.device) + n * layer
    key = token_ids * 0x1F123BB5 + positions * 0x27D4EB2F + seed * 0x5851F42D
    scores = key[..., None] * 0x2545F491 + experts * 0x9E3779B1
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 0x165667B1)):
        scores = ((scores ^ (scores >> shift)) * factor) & 0x7FFFFFFF
    ones = torch.zeros(scores.shape, device=scores.device)
    return ones.scatter(-1, scores.topk(k, dim=-1).indices, 1.0 / k)

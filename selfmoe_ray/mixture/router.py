"""The router: linear maps from a layer's hidden state to expert logits, accumulated over depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selfmoe_ray.config import RouterConfig
from selfmoe_ray.mixture.gate import top_k


class Router(nn.Module):
    """theta [n, hidden] a layer (or one shared by all), in float32.

    With x_j the tensor that layer j's q_proj reads,
        gate_l = top-k(softmax(tau * mean_{j <= l} theta_j x_j))        (accumulate: true)
        gate_l = top-k(softmax(tau * theta_l x_l))                      (accumulate: false)
    The paper's equation (section 3.2) is scope "shared", accumulate false, tau 1.
    """

    def __init__(self, num_layers: int, hidden_size: int, num_experts: int, shape: RouterConfig):
        super().__init__()
        self.shape = shape
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        count = num_layers if shape.scope == "layer" else 1
        self.theta = nn.ModuleList(
            nn.Linear(hidden_size, num_experts, bias=False, dtype=torch.float32) for _ in range(count)
        )

    def logits(self, layer: int, hidden: Tensor) -> Tensor:
        """This layer's own logits [batch, seq, n] of hidden states [batch, seq, hidden]."""
        theta = self.theta[layer if self.shape.scope == "layer" else 0]
        return theta(hidden.to(torch.float32))

    def accumulated(self, layer: int, hidden: Tensor, before: Tensor | None) -> Tensor:
        """The sum of logits [batch, seq, n] up to this layer; `before` is the previous layer's sum."""
        own = self.logits(layer, hidden)
        return own if before is None or not self.shape.accumulate else before + own

    def gates(self, layer: int, summed: Tensor, k: int, among: Sequence[int] | None = None) -> Tensor:
        """Gates [batch, seq, n] from the accumulated logits of this layer; `among`: see `Gate.router`."""
        depth = layer + 1 if self.shape.accumulate else 1
        logits = summed * (self.shape.tau / depth)
        if among is not None:
            absent = torch.ones(self.num_experts, dtype=torch.bool, device=logits.device)
            absent[list(among)] = False
            logits = logits.masked_fill(absent, -torch.inf)
        return top_k(torch.softmax(logits, dim=-1), k)

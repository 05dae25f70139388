"""What a forward pass knows of its gates; plain state that torch.compile traces through."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.serving.vllm_plugin.gates import TokenGates
from selfmoe_ray.serving.vllm_plugin.trace import GateTrace


class Routing:
    """Hands the sum of router logits from layer to layer, and each layer's gates to its linears.

    The attributes hold traced tensors while a pass runs and nothing after it, so a compiled graph
    has no inputs or outputs beyond the model's own.
    """

    def __init__(self, spec: MixtureSpec, rows: TokenGates, trace: GateTrace):
        num_experts = len(spec.experts)
        self.shape = spec.router
        self.rank = spec.rank
        self.rows = rows
        self.trace = trace
        self.lower = torch.ones(num_experts, num_experts, dtype=torch.bool).tril(-1)
        self.summed: Tensor | None = None
        self.gates: Tensor | None = None

    def read(self, layer: int, hidden: Tensor, theta: Tensor) -> None:
        """A layer's gates [tokens, n * r] from what its q_proj reads [tokens, hidden]; theta [n, hidden]."""
        summed = F.linear(hidden.to(torch.float32), theta)
        if layer and self.shape.accumulate:
            assert self.summed is not None
            summed = summed + self.summed
        depth = layer + 1 if self.shape.accumulate else 1
        probabilities = torch.softmax(summed * (self.shape.tau / depth), dim=-1)
        k, weights = self.rows.read(hidden.shape[0])
        gates = torch.where(ranks(probabilities, self.lower) < k, probabilities, weights)
        self.trace.record(layer, gates)
        self.summed = summed
        # Once a layer, for all of its linears: every gate repeated over its expert's ranks.
        self.gates = gates.to(hidden.dtype).unsqueeze(2).expand(-1, -1, self.rank).flatten(1)

    def end(self) -> None:
        """Close a pass."""
        self.summed = self.gates = None


def ranks(values: Tensor, lower: Tensor) -> Tensor:
    """The place of each value [tokens, n] among its row's, from 0 for the largest; of equals the first leads.

    Compared pairwise, because k differs between rows and a sort would not fuse. `lower` [n, n] is
    true where the column precedes the row.
    """
    mine, other = values[:, :, None], values[:, None, :]
    return torch.where(lower, other >= mine, other > mine).sum(dim=-1, dtype=torch.int32)

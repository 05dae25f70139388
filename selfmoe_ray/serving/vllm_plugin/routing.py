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

    `gates` [tokens, parts * n * r] has the layout of a linear's A_cat x, for linears of up to `parts`
    parts; `dtype` is the model's. The attributes hold traced tensors while a pass runs and nothing
    after it, so a compiled graph has no inputs or outputs beyond the model's own.
    """

    def __init__(self, spec: MixtureSpec, rows: TokenGates, trace: GateTrace, parts: int, dtype: torch.dtype):
        num_experts = len(spec.experts)
        self.shape = spec.router
        # [n, parts * n * r]: repeats every gate over its expert's ranks, and all for each part.
        self.spread = torch.eye(num_experts, dtype=dtype).repeat_interleave(spec.rank, dim=1).repeat(1, parts)
        self.rows = rows
        self.trace = trace
        self.lower = torch.ones(num_experts, num_experts, dtype=torch.bool).tril(-1)
        self.summed: Tensor | None = None
        self.gates: Tensor | None = None
        self.of_layers: list[Tensor] = []

    def read(self, layer: int, hidden: Tensor, theta: Tensor) -> None:
        """Set a layer's gates from what its q_proj reads [tokens, hidden]; theta [n, hidden]."""
        summed = F.linear(hidden.to(torch.float32), theta)
        if layer and self.shape.accumulate:
            assert self.summed is not None
            summed = summed + self.summed
        depth = layer + 1 if self.shape.accumulate else 1
        probabilities = torch.softmax(summed * (self.shape.tau / depth), dim=-1)
        k, weights = self.rows.read(hidden.shape[0])
        gates = torch.where(ranks(probabilities, self.lower) < k, probabilities, weights)
        self.of_layers = [*self.of_layers, gates] if layer else [gates]
        self.summed = summed
        # Once a layer, for all of its linears. An expand would compile to a division for every element
        # of every linear.
        self.gates = torch.mm(gates.to(hidden.dtype), self.spread)

    def end(self) -> None:
        """Close a pass.

        The gates are recorded here at once: a compiled graph copies the whole buffer for each write
        that follows another.
        """
        self.trace.record(torch.stack(self.of_layers, dim=1))
        self.summed = self.gates = None
        self.of_layers = []


def ranks(values: Tensor, lower: Tensor) -> Tensor:
    """The place of each value [tokens, n] among its row's, from 0 for the largest; of equals the first leads.

    Compared pairwise, because k differs between rows and a sort would not fuse. `lower` [n, n] is
    true where the column precedes the row.
    """
    mine, other = values[:, :, None], values[:, None, :]
    return torch.where(lower, other >= mine, other > mine).sum(dim=-1, dtype=torch.int32)

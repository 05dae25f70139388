"""What a forward pass knows of its gates; plain state that torch.compile traces through."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from selfmoe_ray.engine.kernels.mixture import BoundRouter, Kernels
from selfmoe_ray.engine.vllm_plugin.gates import TokenGates
from selfmoe_ray.engine.vllm_plugin.recorder import GateRecorder
from selfmoe_ray.mixture.spec import MixtureSpec


class PassState:
    """Hands the router's logits from layer to layer, and each layer's gates to its linears.

    `gates` is what the linears read: with `kernels` [tokens, n] float32, else [tokens, parts * n * r] in
    the layout of a linear's A_cat x, for linears of up to `parts` parts; `dtype` is the model's. The
    attributes hold traced tensors while a pass runs and nothing after it, so a compiled graph has no
    inputs or outputs beyond the model's own. `is_eager` says that no pass is ever compiled or captured,
    so that Python may choose between operations.
    """

    def __init__(
        self,
        spec: MixtureSpec,
        rows: TokenGates,
        recorder: GateRecorder,
        parts: int,
        dtype: torch.dtype,
        is_eager: bool = False,
        kernels: Kernels | None = None,
    ):
        num_experts = len(spec.experts)
        self.spec = spec
        self.parts = parts
        self.is_eager = is_eager
        self.kernels = kernels
        # [n, parts * n * r]: repeats every gate over its expert's ranks, and all for each part.
        self.spread = torch.eye(num_experts, dtype=dtype).repeat_interleave(spec.rank, dim=1).repeat(1, parts)
        self.rows = rows
        self.recorder = recorder
        self.lower = torch.ones(num_experts, num_experts, dtype=torch.bool).tril(-1)
        # The logits of a pass with bound kernels, at a fixed address: [max_tokens, n].
        self.running = torch.zeros_like(rows.weights)
        self.logits: Tensor | None = None
        self.gates: Tensor | None = None
        self.of_layers: list[Tensor] = []

    def read(self, layer: int, hidden: Tensor, theta: Tensor) -> None:
        """Set a layer's gates from what its q_proj reads [tokens, hidden]; theta [n, hidden]."""
        alpha, beta = self._mean(layer)
        before = self.logits if beta else None
        if self.kernels:
            k, weights = self.rows.read(len(hidden))
            self.logits, gates = self.kernels.route(hidden, theta, before, alpha, beta, k, weights)
            self.gates = gates
        else:
            self.logits = _logits(hidden, theta, before, alpha, beta)
            gates = self._select(self.logits)
            # Once a layer, for all of its linears.
            self.gates = self._spread(gates.to(hidden.dtype))
        self.of_layers = [*self.of_layers, gates] if layer else [gates]

    def bind(self, layer: int, theta: Tensor) -> BoundRouter:
        """`read` for eager passes with kernels: it writes where the recorder and the linears read."""
        alpha, beta = self._mean(layer)
        before = self.running if beta else None
        gates = self.recorder.gates[layer]
        return BoundRouter(
            theta, before, alpha, beta, self.rows.k, self.rows.weights, self.running, gates, self.spread.dtype
        )

    def _mean(self, layer: int) -> tuple[float, float]:
        """The factors of a layer's own logits and of the logits before it."""
        router = self.spec.router
        if not (layer and router.accumulate):
            return router.tau, 0.0
        # tau times the mean over the layers so far; kept as a mean, it is one operation a layer.
        depth = layer + 1
        return router.tau / depth, layer / depth

    def _select(self, logits: Tensor) -> Tensor:
        """Each row's gate: its top k, and its constant weights elsewhere, both [tokens, n]."""
        if self.is_eager and self.rows.all_default:
            values, experts = torch.softmax(logits, dim=-1).topk(self.rows.default.k)
            return torch.zeros_like(logits).scatter_(1, experts, values)
        k, weights = self.rows.read(len(logits))
        probabilities = torch.softmax(logits.masked_fill(weights < 0, -torch.inf), dim=-1)
        return torch.where(ranks(probabilities, self.lower) < k, probabilities, weights.clamp(min=0))

    def _spread(self, gates: Tensor) -> Tensor:
        """Gates [tokens, n] in the layout of A_cat x, [tokens, parts * n * r]."""
        if not self.is_eager:
            # An expand would compile to a division for every element of every linear.
            return torch.mm(gates, self.spread)
        tokens, num_experts = gates.shape
        shape = (tokens, self.parts, num_experts, self.spec.rank)
        return gates[:, None, :, None].expand(shape).reshape(tokens, -1)

    def end(self) -> None:
        """Close a pass.

        The gates are recorded here at once: a compiled graph copies the whole buffer for each write
        that follows another.
        """
        self.recorder.record(torch.stack(self.of_layers, dim=1))
        self.logits = self.gates = None
        self.of_layers = []


def _logits(hidden: Tensor, theta: Tensor, before: Tensor | None, alpha: float, beta: float) -> Tensor:
    hidden_fp32 = hidden.to(torch.float32)
    if before is None:
        return F.linear(hidden_fp32, theta) * alpha
    return torch.addmm(before, hidden_fp32, theta.t(), beta=beta, alpha=alpha)


def ranks(values: Tensor, lower: Tensor) -> Tensor:
    """The place of each value [tokens, n] among its row's, from 0 for the largest; of equals the first leads.

    Compared pairwise, because k differs between rows and a sort would not fuse. `lower` [n, n] is
    true where the column precedes the row.
    """
    mine, other = values[:, :, None], values[:, None, :]
    return torch.where(lower, other >= mine, other > mine).sum(dim=-1, dtype=torch.int32)

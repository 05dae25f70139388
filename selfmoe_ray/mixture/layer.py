"""The one layer: a frozen linear plus the gated, stacked low-rank product of all experts."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfmoe_ray.mixture.state import GateState


class MixtureLinear(nn.Module):
    """y = W x + B_cat ((g (x) 1_r) * (A_cat x)), the gate g scaled by alpha/r.

    x [batch, seq, in], A_cat [n*r, in], B_cat [out, n*r]. Each expert's A and B are parameters of
    their own, in float32, so that every expert can have its own learning rate; they are stacked in
    the input's dtype on use, or once by `pack`.
    """

    def __init__(self, base: nn.Linear, state: GateState, layer: int, reads: bool, num_experts: int):
        super().__init__()
        self.base = base
        self.state = state
        self.layer = layer
        self.reads = reads
        self.num_experts = num_experts
        device = base.weight.device
        for expert in range(num_experts):
            a = torch.zeros(state.rank, base.in_features, device=device)
            b = torch.zeros(base.out_features, state.rank, device=device)
            self.register_parameter(f"lora_A_{expert}", nn.Parameter(a))
            self.register_parameter(f"lora_B_{expert}", nn.Parameter(b))
        self.packed_A: Tensor | None
        self.packed_B: Tensor | None
        self.register_buffer("packed_A", None, persistent=False)
        self.register_buffer("packed_B", None, persistent=False)

    def lora(self, expert: int) -> tuple[nn.Parameter, nn.Parameter]:
        """One expert's A [r, in] and B [out, r]."""
        return getattr(self, f"lora_A_{expert}"), getattr(self, f"lora_B_{expert}")

    def initialise(self, expert: int, rank: int, key: str) -> None:
        """A as LoRA does (Kaiming uniform), B zero; drawn from `key`, so it depends on nothing else."""
        a, b = self.lora(expert)
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
        drawn = torch.empty(rank, a.shape[1])
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            a.zero_()
            a[:rank] = drawn.to(a.device)
            b.zero_()

    def pack(self, dtype: torch.dtype) -> None:
        """Stack the experts once, for frozen experts."""
        self.unpack()
        with torch.no_grad():
            self.packed_A, self.packed_B = self._stacked(dtype)

    def unpack(self) -> None:
        """Stack on every use again, so that training reaches the experts."""
        self.packed_A = self.packed_B = None

    def _stacked(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self.packed_A is not None and self.packed_B is not None:
            return self.packed_A, self.packed_B
        pairs = [self.lora(expert) for expert in range(self.num_experts)]
        a = torch.cat([a for a, _ in pairs]).to(dtype)
        b = torch.cat([b for _, b in pairs], dim=1).to(dtype)
        return a, b

    def forward(self, x: Tensor) -> Tensor:
        """[batch, seq, in] -> [batch, seq, out]."""
        y = self.base(x)
        if self.reads:
            self.state.read(self.layer, x)
        gates = self.state.wide(self.layer)
        if gates is None:
            return y
        a, b = self._stacked(x.dtype)
        low = F.linear(x, a) * gates
        # Added by the product itself, into the output that the base linear has just made.
        y.view(-1, y.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.t())
        return y

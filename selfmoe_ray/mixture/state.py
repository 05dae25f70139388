"""What one forward pass knows of its gates; shared by all mixture layers of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfmoe_ray.mixture.gate import Gate, random_gates
from selfmoe_ray.mixture.router import Router


class GateState:
    """Hands each decoder layer's gates from the linear that reads the router's input to the others.

    Everything is kept until the next pass begins: gradient checkpointing runs a layer again during
    the backward pass, last layer first, and finds the sum of the layer before as it was.
    """

    def __init__(self, router: Router, scalings: Tensor, rank: int, gate: Gate):
        self.router = router
        self.scalings = scalings
        self.rank = rank
        self.gate = gate
        self.recorded_gates: list[Tensor] | None = None
        self.recorded_inputs: list[list[Tensor]] | None = None
        self._reset()

    def _reset(self) -> None:
        layers = self.router.num_layers
        self._sums: list[Tensor | None] = [None] * layers
        self._gates: list[Tensor | None] = [None] * layers
        self._wide: list[Tensor | None] = [None] * layers
        self._inputs: list[Tensor] = []
        self._fixed: Tensor | None = None
        self._positions: Tensor | None = None
        self._shape: tuple[int, int] = (0, 0)

    def begin(self, inputs: dict[str, Any]) -> None:
        """Start a pass over the base model's keyword inputs."""
        self._reset()
        if self.gate.kind == "random":
            self._positions = _positions(inputs)

    def read(self, layer: int, hidden: Tensor) -> None:
        """Decide the layer's gates from the tensor [batch, seq, hidden] that its q_proj reads."""
        self._shape = (hidden.shape[0], hidden.shape[1])
        if self.recorded_inputs is not None:
            self._inputs.append(hidden.detach())
        if self.gate.kind == "off":
            return
        n = self.router.num_experts
        if self.gate.kind == "router":
            before = self._sums[layer - 1] if layer else None
            summed = self._sums[layer] = self.router.accumulated(layer, hidden, before)
            gates = self.router.gates(layer, summed, self.gate.k, self.gate.among)
        elif self.gate.kind == "random":
            assert self._positions is not None
            gates = random_gates(self._positions, n).to(hidden.device)
        else:
            if self._fixed is None:
                self._fixed = self.gate.fixed(n, hidden.device)
            assert self._fixed is not None
            if self._fixed.shape[0] not in (1, hidden.shape[0]):
                raise ValueError(f"gates for {self._fixed.shape[0]} rows, but the batch has {hidden.shape[0]}")
            gates = self._fixed
        self._gates[layer] = gates
        scaled = gates * self.scalings.to(gates.device)
        self._wide[layer] = scaled.repeat_interleave(self.rank, dim=-1).to(hidden.dtype)

    def wide(self, layer: int) -> Tensor | None:
        """The layer's gates times alpha/r, each repeated r times: [batch, seq, n*r]; None when off."""
        if self.gate.kind == "off":
            return None
        if self._wide[layer] is None:
            raise RuntimeError(f"layer {layer}: a linear ran before the one the router reads")
        return self._wide[layer]

    def end(self) -> None:
        """Close a pass: keep what a recorder asked for."""
        if self.recorded_inputs is not None:
            self.recorded_inputs.append(self._inputs)
            self._inputs = []
        if self.recorded_gates is not None:
            n = self.router.num_experts
            off = torch.zeros(1, 1, n, device=self.scalings.device)
            layers = [(off if gates is None else gates.detach()).expand(*self._shape, n) for gates in self._gates]
            self.recorded_gates.append(torch.stack(layers))


def _positions(inputs: dict[str, Any]) -> Tensor:
    """The position [batch, seq] of each token that a pass is given."""
    ids = inputs.get("input_ids")
    if ids is None:
        raise ValueError("random gates need input_ids")
    positions = inputs.get("position_ids")
    if positions is None and inputs.get("attention_mask") is not None:
        positions = inputs["attention_mask"].long().cumsum(-1)[:, -ids.shape[1] :] - 1
    if positions is None:
        cache = inputs.get("past_key_values")
        start = cache.get_seq_length() if cache is not None else 0
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
    return positions.expand_as(ids)

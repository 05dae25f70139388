"""The gate of each token row: what a request may ask for, and the buffers that the forward pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfmoe_ray.mixture.gate import ROUTER, Gate, random_gates, read_gate
from selfmoe_ray.mixture.spec import MixtureSpec

# The weight of an expert that the router does not see; what a request weighs itself is not below zero.
ABSENT = -1.0


@dataclass(frozen=True)
class RowGate:
    """A token's gate: the router's top k, and constant weights for the experts that it does not pick.

    weights: `ABSENT` takes an expert out of the router's softmax, and its gate is zero.
    is_random: each token has an expert of its own instead of the weights, drawn by its position alone, so
    that neither the batch nor the prefix cache changes it; the same one in all layers.
    """

    k: int
    weights: tuple[float, ...]
    is_random: bool = False


def parse_gate(value: object, spec: MixtureSpec) -> RowGate:
    """The gate that a request asks for. Raises UserError as `mixture.gate.read_gate` does."""
    return row_gate(read_gate(value, spec.experts, spec.num_experts_per_tok), len(spec.experts))


def row_gate(gate: Gate, n: int) -> RowGate:
    """A gate of the model as the engine's buffers hold it."""
    fixed = gate.fixed(n, torch.device("cpu"))
    if gate.among is not None:
        weights = tuple(0.0 if expert in gate.among else ABSENT for expert in range(n))
    else:
        weights = (0.0,) * n if fixed is None else tuple(fixed[0, 0].tolist())
    return RowGate(gate.k if gate.kind == "router" else 0, weights, gate.kind == "random")


class TokenGates:
    """The gate of every token row of the next forward pass, in buffers at fixed addresses.

    k [max_tokens, 1] int32, weights [max_tokens, n] float32. A captured or compiled graph reads the
    buffers, so a request's gate is data, never a branch. `all_default`: no request of the batch names one.
    """

    def __init__(self, spec: MixtureSpec, max_tokens: int):
        self.spec = spec
        self.default = parse_gate(ROUTER, spec)
        self.k = torch.full((max_tokens, 1), self.default.k, dtype=torch.int32)
        self.weights = torch.zeros(max_tokens, len(spec.experts), dtype=torch.float32)
        self.all_default = True

    def read(self, tokens: int) -> tuple[Tensor, Tensor]:
        """k [tokens, 1] and weights [tokens, n]."""
        return self.k.narrow(0, 0, tokens), self.weights.narrow(0, 0, tokens)

    def write(self, gates: Sequence[RowGate | None], positions: np.ndarray, tokens: np.ndarray) -> None:
        """Set the gates of a batch: one a request (None for the default), its first position and number of tokens."""
        if all(gate is None for gate in gates):
            self._reset()
            return
        rows = [gate or self.default for gate in gates]
        token_rows = torch.from_numpy(np.repeat(np.arange(len(rows)), tokens))
        k = torch.tensor([[row.k] for row in rows], dtype=torch.int32)[token_rows]
        weights = torch.tensor([row.weights for row in rows], dtype=torch.float32)[token_rows]
        if any(row.is_random for row in rows):
            is_random = torch.tensor([row.is_random for row in rows])[token_rows]
            weights[is_random] = _random_weights(positions, tokens, weights.shape[1])[is_random]
        # The temporaries are pageable, so the copy has left them when it returns.
        self.k[: len(k)].copy_(k)
        self.weights[: len(weights)].copy_(weights)
        self.all_default = False

    def _reset(self) -> None:
        if not self.all_default:
            self.k.fill_(self.default.k)
            self.weights.zero_()
            self.all_default = True


def _random_weights(positions: np.ndarray, tokens: np.ndarray, n: int) -> Tensor:
    """One expert a token, one-hot [tokens of the batch, n]."""
    firsts = np.cumsum(tokens) - tokens
    return random_gates(torch.from_numpy(np.repeat(positions - firsts, tokens) + np.arange(tokens.sum())), n)

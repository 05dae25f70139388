"""A transformers model that has become a mixture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selfmoe_ray.mixture.decoder import decoder_linears
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.layer import MixtureLinear
from selfmoe_ray.mixture.router import Router
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.mixture.state import GateState


class MixtureModel(nn.Module):
    """A base model whose decoder linears are `MixtureLinear`s, and the router that gates them."""

    def __init__(self, base: Any, spec: MixtureSpec):
        super().__init__()
        linears = decoder_linears(base)
        reader = next(iter(linears[0].values()))
        device = reader.weight.device
        self.base = base.requires_grad_(False)
        self.spec = spec
        self.router = Router(len(linears), reader.in_features, len(spec.experts), spec.router).to(device)
        scalings = torch.tensor(spec.scalings)
        self.state = GateState(self.router, scalings, spec.rank, Gate.router(spec.num_experts_per_tok))
        self.linears: dict[str, MixtureLinear] = {}
        for layer, named in enumerate(linears):
            for position, (name, linear) in enumerate(named.items()):
                mixed = MixtureLinear(linear, self.state, layer, position == 0, len(spec.experts))
                base.set_submodule(name, mixed)
                self.linears[name] = mixed
        base.register_forward_pre_hook(self._begin, with_kwargs=True)
        base.register_forward_hook(self._end)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.state.begin({"input_ids": args[0], **kwargs} if args else kwargs)

    def _end(self, _: nn.Module, __: Any, output: Any) -> None:
        self.state.end()

    def forward(self, *, gate: Gate | None = None, **inputs: Any) -> Any:
        """The base's forward under a gate (default: the router with the spec's num_experts_per_tok).

        One forward at a time may wait for its backward when gradient checkpointing is on.
        """
        self.state.gate = gate or self.default_gate
        return self.base(**inputs)

    def generate(self, *, gate: Gate | None = None, **inputs: Any) -> Tensor:
        """The base's `generate` under a gate; token ids [batch, prompt + new tokens]."""
        self.state.gate = gate or self.default_gate
        return self.base.generate(**inputs)

    @property
    def default_gate(self) -> Gate:
        """MiXSE's own gate."""
        return Gate.router(self.spec.num_experts_per_tok)

    @contextmanager
    def record_gates(self) -> Iterator[list[Tensor]]:
        """Yields a list that receives each forward's gates [layers, batch, seq, n] in float32."""
        recorded: list[Tensor] = []
        self.state.recorded_gates = recorded
        try:
            yield recorded
        finally:
            self.state.recorded_gates = None

    @contextmanager
    def record_router_inputs(self) -> Iterator[list[list[Tensor]]]:
        """Yields a list that receives, for each forward, what the router reads: a [batch, seq, hidden] a layer."""
        recorded: list[list[Tensor]] = []
        self.state.recorded_inputs = recorded
        try:
            yield recorded
        finally:
            self.state.recorded_inputs = None

    def expert_parameters(self, expert: int) -> list[nn.Parameter]:
        """A and B of one expert, in module order."""
        return [parameter for linear in self.linears.values() for parameter in linear.lora(expert)]

    def router_parameters(self) -> list[nn.Parameter]:
        """theta, in layer order."""
        return list(self.router.parameters())

    def initialise(self, seed: int) -> None:
        """Fresh experts and a fresh router; an expert's start depends on the seed and its name only."""
        for index, expert in enumerate(self.spec.experts):
            for name, linear in self.linears.items():
                linear.initialise(index, self.spec.ranks[index], f"{seed}/{expert}/{name}")
        generator = torch.Generator().manual_seed(seed)
        for theta in self.router_parameters():
            bound = theta.shape[1] ** -0.5
            with torch.no_grad():
                theta.copy_(torch.empty(theta.shape).uniform_(-bound, bound, generator=generator))

    def train_only(self, parameters: list[nn.Parameter]) -> None:
        """Let gradients reach these parameters and no others; frozen experts are stacked once."""
        self.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        experts = {id(p) for index in range(len(self.spec.experts)) for p in self.expert_parameters(index)}
        if any(id(parameter) in experts for parameter in parameters):
            self.unpack()
        else:
            self.pack()

    def pack(self) -> None:
        """Stack frozen experts once, in the base's dtype; call again after their weights change."""
        for linear in self.linears.values():
            linear.pack(linear.base.weight.dtype)

    def unpack(self) -> None:
        """Stack experts on every use, so that gradients reach them."""
        for linear in self.linears.values():
            linear.unpack()


def attach(base: Any, spec: MixtureSpec, seed: int = 0) -> MixtureModel:
    """Make a mixture of a loaded transformers causal LM, in place, with fresh experts and router.

    Raises UserError with the reason where the family is not supported.
    """
    model = MixtureModel(base, spec)
    if next(base.parameters()).device.type != "meta":
        model.initialise(seed)
    return model

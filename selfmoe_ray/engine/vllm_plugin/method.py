"""How a vLLM linear layer computes with its experts: one strategy a kind of engine, chosen after loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase

from selfmoe_ray.engine.kernels.mixture import BoundExperts
from selfmoe_ray.engine.vllm_plugin.pass_state import PassState
from selfmoe_ray.engine.vllm_plugin.stacked import KernelExperts


class Strategy(Protocol):
    """What a layer computes: [tokens, in] -> [tokens, out], its experts included."""

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor: ...


class MixtureLinearMethod(LinearMethodBase):
    """A layer's own method, plus its experts; module names stay, so the base's weights load as ever.

    theta [n, hidden] float32 on the layer whose input the router reads. `merge` allows the experts to change
    the layer's own weight, which then cannot be shared with others. `last`: of a pass.
    """

    def __init__(
        self, base: LinearMethodBase, state: PassState, layer: int, theta: Tensor | None = None, merge: bool = False
    ):
        self.base = base
        self.state = state
        self.layer = layer
        self.theta = theta
        self.merge = merge
        self.last = False
        self.supports_pre_processed_weights = base.supports_pre_processed_weights

    def create_weights(self, layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        """As the base's."""
        self.base.create_weights(layer, *args, **kwargs)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """As the base's; the experts take the form that the chosen strategy reads."""
        self.strategy = self._choose(layer)
        self.base.process_weights_after_loading(layer)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[tokens, in] -> [tokens, out], as the layer's own method plus the experts.

        vLLM's Transformers backend gives [1, tokens, in]; strategies see rows of tokens alone.
        """
        if x.dim() == 2:
            return self.strategy.apply(layer, x, bias)
        return self.strategy.apply(layer, x.flatten(0, -2), bias).unflatten(0, x.shape[:-1])

    def _choose(self, layer: nn.Module) -> Strategy:
        if self.state.kernels and self.state.is_eager:
            bound = BoundKernels(layer, self.base, self.state, self.layer)
            return bound if self.theta is None else Routed(bound, self.state.bind(self.layer, self.theta))
        strategy: Strategy
        if self.state.kernels:
            strategy = CompiledKernels(layer, self.base, self.state)
        else:
            strategy = (Merged if self.merge else Separate)(layer, self.base, self.state)
        if self.theta is not None:
            strategy = Routed(strategy, _Router(self.state, self.layer, self.theta))
        return Last(strategy, self.state) if self.last else strategy


class BoundKernels:
    """In an eager engine on a CPU: kernels bound to the model's tensors, which read the gates where they lie."""

    def __init__(self, layer: Any, base: LinearMethodBase, state: PassState, number: int):
        layer.mixse_experts = experts = KernelExperts(layer.mixse_experts)
        self.base = base
        self.add_experts = BoundExperts(experts.a, experts.b, experts.part_ends, state.recorder.gates[number])

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """See Strategy."""
        y = self.base.apply(layer, x, bias)
        self.add_experts(y, x)
        return y


class CompiledKernels:
    """In a compiled engine on a CPU: the kernels as operations of torch."""

    def __init__(self, layer: Any, base: LinearMethodBase, state: PassState):
        layer.mixse_experts = KernelExperts(layer.mixse_experts)
        self.base = base
        self.state = state

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        """See Strategy."""
        y = self.base.apply(layer, x, bias)
        experts = layer.mixse_experts
        self.state.kernels.add_experts(y, x, self.state.gates, experts.a, experts.b, experts.part_ends)  # type: ignore[union-attr]
        return y


class Merged:
    """Dense, one product: a block-diagonal B_cat is more columns of the layer's own weight, so that
    W x + B_cat low is [W B_cat] [x low]."""

    def __init__(self, layer: Any, base: LinearMethodBase, state: PassState):
        merged = torch.cat([layer.weight.data, layer.mixse_experts.up[0].weight.data], dim=1)
        layer.weight = nn.Parameter(merged, requires_grad=False)
        del layer.mixse_experts.up
        self.base = base
        self.state = state

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        """See Strategy."""
        gated = layer.mixse_experts.gate(x, self.state.gates)
        return self.base.apply(layer, torch.cat([x, gated], dim=1), bias)


class Separate:
    """Dense, in products of their own: the layer's weight stays as it was loaded, and can be shared."""

    def __init__(self, layer: Any, base: LinearMethodBase, state: PassState):
        self.base = base
        self.state = state

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        """See Strategy."""
        experts = layer.mixse_experts
        gated = experts.gate(x, self.state.gates)
        return self.base.apply(layer, x, bias) + experts.expand(gated)


class Routed:
    """A strategy on the layer whose input the router reads, which gives it and those after it their gates."""

    def __init__(self, strategy: Strategy, route: Callable[[Tensor], None]):
        self.strategy = strategy
        self.route = route

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """See Strategy."""
        self.route(x)
        return self.strategy.apply(layer, x, bias)


class Last:
    """A strategy on the last layer of a pass, whose gates are all there after it."""

    def __init__(self, strategy: Strategy, state: PassState):
        self.strategy = strategy
        self.state = state

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """See Strategy."""
        y = self.strategy.apply(layer, x, bias)
        self.state.end()
        return y


class _Router:
    """`PassState.read` of a layer, as a function of what it reads; a partial would not compile."""

    def __init__(self, state: PassState, layer: int, theta: Tensor):
        self.state = state
        self.layer = layer
        self.theta = theta

    def __call__(self, x: Tensor) -> None:
        self.state.read(self.layer, x, self.theta)

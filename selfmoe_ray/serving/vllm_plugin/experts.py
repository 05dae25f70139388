"""The stacked experts of one vLLM linear layer, sharded as the layer itself is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.utils import set_weight_attrs

from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.serving.vllm_plugin.routing import Routing


class StackedExperts(nn.Module):
    """A_cat and B_cat of a layer that computes `parts`, the checkpoint's linears, in one product.

    weight [parts * n * r, in]: the experts' A, by part, expert and rank. up_<part> [out of the part,
    n * r]: their B times alpha/r. Kept apart by part: a block-diagonal B would be mostly zeros.
    `in` and `out` are this rank's share. Column-parallel layers split B's rows; row-parallel layers
    split A's columns, and the layer's own all-reduce sums the partial products.
    """

    def __init__(self, linear: LinearBase, parts: list[str], spec: MixtureSpec):
        super().__init__()
        self.parts = parts
        self.spec = spec
        self.shape = (len(parts), len(spec.experts), spec.rank)
        inner = len(spec.experts) * spec.rank
        inputs = getattr(linear, "input_size_per_partition", linear.input_size)
        self.outputs = _part_outputs(linear, parts)
        dtype = linear.params_dtype
        # vLLM's own method, so that the weight is packed for the platform as the base's weights are.
        self.quant_method = UnquantizedLinearMethod()
        self.weight = nn.Parameter(torch.zeros(len(parts) * inner, inputs, dtype=dtype), requires_grad=False)
        for index, width in enumerate(self.outputs):
            self.register_buffer(f"up_{index}", torch.zeros(width, inner, dtype=dtype), persistent=False)

    def load(self, linear: LinearBase, expert: int, part: int, a: Tensor, b: Tensor) -> None:
        """Place one expert's A [r, in] and B [out, r] of a part, unsharded, into the stack.

        Raises UserError where the shapes do not fit the layer.
        """
        rank = self.spec.ranks[expert]
        up = getattr(self, f"up_{part}")
        try:
            local_a = _shard(linear, a.float(), (rank, self.weight.shape[1]), "input", None)
            shard = _shard_id(linear, self.parts, part)
            local_b = _shard(linear, b.float(), (sum(self.outputs), rank), "output", shard)
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"expert {self.spec.experts[expert]}: {self.parts[part]} has A {list(a.shape)} and "
                f"B {list(b.shape)}, which do not fit {linear.prefix} ({linear.input_size} inputs)"
            ) from error
        first = sum(self.outputs[:part])
        local_b = local_b[first : first + self.outputs[part]]
        row = (part * self.shape[1] + expert) * self.shape[2]
        column = expert * self.shape[2]
        self.weight.data[row : row + rank].copy_(local_a)
        up[:, column : column + rank].copy_(local_b * self.spec.scalings[expert])

    def add(self, y: Tensor, x: Tensor, gates: Tensor) -> Tensor:
        """y [tokens, out] plus the gated low-rank product of x [tokens, in]; gates [tokens, n]."""
        low = self.quant_method.apply(self, x)
        low = low.view(-1, *self.shape) * gates[:, None, :, None]
        low = low.view(-1, self.shape[0], self.shape[1] * self.shape[2])
        start = 0
        for part, width in enumerate(self.outputs):
            y.narrow(1, start, width).addmm_(low[:, part], getattr(self, f"up_{part}").t())
            start += width
        return y


class MixtureLinearMethod(LinearMethodBase):
    """A layer's own method, plus its experts; module names stay, so the base's weights load as ever.

    theta [hidden, n] float32 on the layer whose input the router reads.
    """

    def __init__(self, base: LinearMethodBase, routing: Routing, layer: int, theta: Tensor | None = None):
        self.base = base
        self.routing = routing
        self.layer = layer
        self.theta = theta
        self.last = False
        self.supports_pre_processed_weights = base.supports_pre_processed_weights

    def create_weights(self, layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        """As the base's."""
        self.base.create_weights(layer, *args, **kwargs)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """As the base's; the experts are a module of their own and have theirs."""
        self.base.process_weights_after_loading(layer)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[tokens, in] -> [tokens, out], as the layer's own method plus the experts."""
        if self.theta is not None:
            self.routing.read(self.layer, x, self.theta)
        y = self.base.apply(layer, x, bias)
        assert self.routing.gates is not None
        y = layer.mixse_experts.add(y, x, self.routing.gates)
        if self.last:
            self.routing.end()
        return y


def _part_outputs(linear: LinearBase, parts: list[str]) -> list[int]:
    sizes = list(getattr(linear, "output_partition_sizes", [linear.output_size]))
    if len(parts) == 1:
        return [sum(sizes)]
    if len(parts) != len(sizes):
        raise UserError(f"{linear.prefix} has {len(sizes)} products, but vLLM calls its parts {', '.join(parts)}")
    return sizes


def _shard_id(linear: LinearBase, parts: list[str], part: int) -> str | int | None:
    if len(parts) == 1:
        return None
    if isinstance(linear, QKVParallelLinear):
        return "qkv"[part]
    assert isinstance(linear, MergedColumnParallelLinear)
    return part


def _shard(linear: Any, full: Tensor, shape: tuple[int, int], dim: str, shard: str | int | None) -> Tensor:
    """This rank's share of a matrix, cut by the layer's own weight loader; `shape` is the share's."""
    if isinstance(linear, RowParallelLinear) != (dim == "input"):
        assert full.shape == shape
        return full
    stage = nn.Parameter(torch.zeros(shape, dtype=full.dtype), requires_grad=False)
    set_weight_attrs(stage, {"input_dim": 1} if dim == "input" else {"output_dim": 0})
    linear.weight_loader(stage, full, *(() if shard is None else (shard,)))
    return stage.data

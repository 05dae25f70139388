"""The stacked experts of one vLLM linear layer, sharded as the layer itself is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.model_executor.layers.linear import (
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.utils import set_weight_attrs

from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.spec import MixtureSpec

# Up to this rank, one product with a block-diagonal B beats one product a part: small ones cost by
# the call, large ones by their zeros. Measured at hidden size 576.
BLOCK_DIAGONAL_RANK = 256


class PackedLinear(nn.Module):
    """A weight [out, in] that vLLM packs for the platform as it does the base's weights."""

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype):
        super().__init__()
        self.quant_method = UnquantizedLinearMethod()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, in] -> [tokens, out]."""
        return self.quant_method.apply(self, x)


class StackedExperts(nn.Module):
    """A_cat and B_cat of a layer that computes `parts`, the checkpoint's linears, in one product.

    down [parts * n * r, in]: the experts' A, by part, expert and rank. up: their B times alpha/r, as
    one block-diagonal [out, parts * n * r], or a [out of the part, n * r] for each part where that
    would be mostly zeros or `by_part` is asked for. `in` and `out` are this rank's share.
    Column-parallel layers split B's rows; row-parallel layers split A's columns, and the layer's own
    all-reduce sums the partial products.
    """

    def __init__(self, linear: LinearBase, parts: list[str], spec: MixtureSpec, by_part: bool = False):
        super().__init__()
        self.parts = parts
        self.spec = spec
        self.inner = len(spec.experts) * spec.rank
        self.outputs = _part_outputs(linear, parts)
        inputs = getattr(linear, "input_size_per_partition", linear.input_size)
        stacked = len(parts) * self.inner
        dtype = linear.params_dtype
        self.down = PackedLinear(stacked, inputs, dtype)
        self.block_diagonal = not by_part and (stacked <= BLOCK_DIAGONAL_RANK or len(parts) == 1)
        shapes = [(sum(self.outputs), stacked)] if self.block_diagonal else [(o, self.inner) for o in self.outputs]
        # To torch's types what a ModuleList holds is any module.
        self.up: Any = nn.ModuleList(PackedLinear(*shape, dtype) for shape in shapes)

    def load(self, linear: LinearBase, expert: int, part: int, a: Tensor, b: Tensor) -> None:
        """Place one expert's A [r, in] and B [out, r] of a part, unsharded, into the stack.

        Raises UserError where the shapes do not fit the layer.
        """
        rank = self.spec.ranks[expert]
        down = self.down.weight.data
        try:
            local_a = _shard(linear, a.float(), (rank, down.shape[1]), "input", None)
            shard = _shard_id(linear, self.parts, part)
            local_b = _shard(linear, b.float(), (sum(self.outputs), rank), "output", shard)
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"expert {self.spec.experts[expert]}: {self.parts[part]} has A {list(a.shape)} and "
                f"B {list(b.shape)}, which do not fit {linear.prefix} ({linear.input_size} inputs)"
            ) from error
        row = part * self.inner + expert * self.spec.rank
        down[row : row + rank].copy_(local_a)
        first = sum(self.outputs[:part])
        local_b = local_b[first : first + self.outputs[part]] * self.spec.scalings[expert]
        if self.block_diagonal:
            self.up[0].weight.data[first : first + len(local_b), row : row + rank].copy_(local_b)
        else:
            column = expert * self.spec.rank
            self.up[part].weight.data[:, column : column + rank].copy_(local_b)

    def gate(self, x: Tensor, gates: Tensor) -> Tensor:
        """A_cat x times the gates [tokens, at least parts * n * r]: [tokens, in] -> [tokens, parts * n * r]."""
        low = self.down(x)
        return low * gates.narrow(1, 0, low.shape[1])

    def expand(self, gated: Tensor) -> Tensor:
        """B_cat times what `gate` gives: [tokens, out]."""
        if self.block_diagonal:
            return self.up[0](gated)
        parts = gated.split(self.inner, dim=1)
        return torch.cat([up(part.contiguous()) for up, part in zip(self.up, parts, strict=True)], dim=1)


class KernelExperts(nn.Module):
    """`StackedExperts` as the CPU kernels read them, once they are loaded.

    a [parts, n, r, in] and b [n, r / 2, out, 2]: pairs of B's columns, times alpha/r. An odd r is filled
    up with zeros.
    """

    a: Tensor
    b: Tensor
    part_ends: Tensor

    def __init__(self, stacked: StackedExperts):
        super().__init__()
        parts, experts, rank = len(stacked.parts), len(stacked.spec.experts), stacked.spec.rank
        a = stacked.down.weight.data.view(parts, experts, rank, -1)
        b = torch.cat([up.weight.data for up in stacked.up]).view(-1, experts, rank).permute(1, 2, 0)
        odd = rank % 2
        a, b = F.pad(a, (0, 0, 0, odd)), F.pad(b, (0, 0, 0, odd))
        b = b.unflatten(1, (-1, 2)).transpose(2, 3)
        self.register_buffer("a", a.contiguous(), persistent=False)
        self.register_buffer("b", b.contiguous(), persistent=False)
        self.register_buffer("part_ends", torch.tensor(stacked.outputs).cumsum(0), persistent=False)


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

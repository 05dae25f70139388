"""Experts merged into one adapter: TIES and DARE, as baselines of the mixture."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from selfmoe_ray.base_model import BaseModel, check_hash
from selfmoe_ray.base_model.sizes import read_sizes
from selfmoe_ray.config import Section
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_key
from selfmoe_ray.mixture.checkpoint import assemble_mixse
from selfmoe_ray.mixture.mixse_dir import ROUTER_WEIGHTS, MixseDir, theta_key
from selfmoe_ray.mixture.systems import MERGES, Merge
from selfmoe_ray.mixture.tensor_file import write_tensors

# A [r, in] and B [out, r] of a linear.
Pair = tuple[Tensor, Tensor]


class MergeConfig(Section):
    """How experts are merged.

    density: the share of an expert's weights that is kept. weights: one an expert; () for TIES's 1 each,
    whose merge is a mean already, and DARE's 1/n each. rank: of the merged adapters; None for the sum of
    the experts'. seed: of DARE's random choice.
    """

    density: float = Field(0.5, gt=0, le=1)
    weights: tuple[float, ...] = ()
    rank: int | None = Field(None, ge=1)
    seed: int = 0

    def weights_of(self, method: Merge, experts: int) -> list[float]:
        """The weights that a merge of so many experts takes. Raises UserError for another number of them."""
        if self.weights and len(self.weights) != experts:
            raise UserError(f"merge weights: {len(self.weights)} given, but there are {experts} experts")
        return list(self.weights) or [1.0 if method == "ties" else 1 / experts] * experts


def merge(deltas: Sequence[Tensor], method: Merge, config: MergeConfig) -> Tensor:
    """One weight change [out, in] from the experts' own, by PEFT's TIES or DARE (linear)."""
    from peft.utils.merge_utils import dare_linear, ties

    weights = torch.tensor(config.weights_of(method, len(deltas)), device=deltas[0].device)
    function = ties if method == "ties" else dare_linear
    merged: Tensor = function(list(deltas), weights, config.density)
    return merged


def factorise(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] whose product is the nearest to delta [out, in] of its rank, or nearly."""
    # A few ranks more than are kept, as the randomised decomposition is least exact in its last ones.
    u, s, v = torch.svd_lowrank(delta, q=min(rank + 8, *delta.shape), niter=4)
    kept, root = min(rank, len(s)), s.sqrt()
    a, b = torch.zeros(rank, delta.shape[1]), torch.zeros(delta.shape[0], rank)
    a[:kept], b[:, :kept] = (v * root).T[:kept], (u * root)[:, :kept]
    return a, b


def merge_mixture(mixse: Path, folder: Path, config: MergeConfig, base: BaseModel) -> None:
    """Write a `mixse` directory whose experts are the merges of another one's, by the names of MERGES.

    Each is a stock PEFT adapter. Their router is all zeros: requests name a merge as their gate.
    mixse: the directory that is merged. Raises UserError as `MixseDir.open` and `MixseDir.check`, and for
    another base than the mixture's.
    """
    read = MixseDir.open(mixse)
    spec = read.spec
    check_hash(spec.base_model, spec.base_hash, base)
    rank = config.rank or sum(spec.ranks)
    merged = spec.model_copy(
        update={
            "experts": MERGES,
            "ranks": (rank,) * len(MERGES),
            "alphas": (float(rank),) * len(MERGES),
            "num_experts_per_tok": 1,
        }
    )
    sizes = read_sizes(base.path)
    read.check(Path(base.path), sizes.layers, sizes.hidden)
    experts = [{module: (a, b) for module, a, b in adapter.pairs()} for adapter in read.adapters]
    with tempfile.TemporaryDirectory() as temporary:
        parts: dict[str, Path] = {method: Path(temporary) / method for method in MERGES}
        for method in MERGES:
            part = parts[method]
            part.mkdir()
            tensors = merge_adapters(experts, spec.scalings, method, config, rank)
            write_tensors(part / ADAPTER_WEIGHTS, tensors, spec.base_model, spec.base_hash)
            _write_adapter_config([adapter.path.parent for adapter in read.adapters], part, rank)
        _write_router(read, Path(temporary))
        assemble_mixse(merged, parts, Path(temporary), folder, base)


def merge_adapters(
    experts: Sequence[Mapping[str, Pair]], scalings: Sequence[float], method: Merge, config: MergeConfig, rank: int
) -> dict[str, Tensor]:
    """The tensors of one adapter, of scaling 1, from those of several with their scalings; experts: by module."""
    merged: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for module in sorted({module for pairs in experts for module in pairs}):
            a, b = factorise(merge(_deltas(experts, scalings, module), method, config), rank)
            merged |= {adapter_key(module, "A"): a, adapter_key(module, "B"): b}
    return merged


def _deltas(experts: Sequence[Mapping[str, Pair]], scalings: Sequence[float], module: str) -> list[Tensor]:
    """Each expert's weight change of a linear; zero where it leaves the linear alone."""
    found = [
        scaling * (pairs[module][1].float() @ pairs[module][0].float()) if module in pairs else None
        for pairs, scaling in zip(experts, scalings, strict=True)
    ]
    like = next(delta for delta in found if delta is not None)
    return [torch.zeros_like(like) if delta is None else delta for delta in found]


def _write_adapter_config(adapters: Sequence[Path], folder: Path, rank: int) -> None:
    configs = [json.loads((adapter / ADAPTER_CONFIG).read_text()) for adapter in adapters]
    targets = sorted({target for config in configs for target in config["target_modules"]})
    merged = {**configs[0], "r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": targets}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(merged, indent=2) + "\n")


def _write_router(read: MixseDir, folder: Path) -> None:
    zeros = {theta_key(index): torch.zeros(len(MERGES), theta.shape[1]) for index, theta in enumerate(read.thetas())}
    write_tensors(folder / ROUTER_WEIGHTS, zeros, read.spec.base_model, read.spec.base_hash)

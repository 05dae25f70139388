"""How many bytes of a device each stage needs: an estimate from shapes.

Bytes are counted where they are large: weights, what is trained with its gradients and optimizer state,
activations that wait for the backward pass, logits, and what the libraries reserve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from selfmoe_ray.base_model.sizes import DTYPE_BYTES, DecoderSizes
from selfmoe_ray.config import RunConfig, TrainingResources

GIB = 2**30
# CUDA's context, cuBLAS workspaces and the allocator's cuttings of one process.
_GPU_RUNTIME = int(1.5 * GIB)
# torch, transformers and DeepSpeed as imported by one process on a CPU.
_CPU_RUNTIME = 1 * GIB
# DeepSpeed's defaults: elements of a reduction bucket, and ZeRO-3's parameters gathered at once.
_REDUCE_BUCKET, _LIVE_PARAMETERS = 5e8, 1e9
# vLLM's default share of a GPU.
GPU_MEMORY_UTILIZATION = 0.9


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a stage needs on one device, by what for; available: what a device has, None if not known."""

    stage: str
    parts: Mapping[str, int]
    available: int | None

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether a device has as much; taken to be so where its memory is not known."""
        return self.available is None or self.total <= self.available

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items() if size >= GIB / 20)
        there = "GiB (a device's memory is unknown)"
        if self.available is not None:
            there = f"of {self.available / GIB:.1f} GiB a device"
        return f"{parts} = {self.total / GIB:.1f} {there}"


@dataclass(frozen=True)
class Workload:
    """What one trainer holds. learning: experts whose weights it trains; experts: all that are attached."""

    learning: int
    experts: int
    workers: int
    on_gpu: bool


def expert_training(
    config: RunConfig, sizes: DecoderSizes, resources: TrainingResources, load: Workload, available: int | None
) -> MemoryEstimate:
    """The experts stage, on each worker of one trainer."""
    trained = load.learning * sizes.lora_parameters(config.mixture.rank)
    width = DTYPE_BYTES[config.training.dtype]
    # Stacked in the base's dtype for every use, and kept for the backward pass.
    return _training("experts", config, sizes, resources, load, available, trained, {"stacked": trained * width})


def router_training(
    config: RunConfig, sizes: DecoderSizes, resources: TrainingResources, load: Workload, available: int | None
) -> MemoryEstimate:
    """The router stage, on each worker of its trainer; its fit to labels holds the whole base on a device."""
    frozen = load.experts * sizes.lora_parameters(config.mixture.rank)
    width = DTYPE_BYTES[config.training.dtype]
    share = load.workers if resources.zero_stage == 3 else 1
    further = {"experts": math.ceil(4 * frozen / share) + width * frozen}
    if config.training.router.init == "labels" and share > 1:
        further["whole base for the fit to labels"] = width * sizes.parameters
    trained = sizes.router_parameters(load.experts)
    return _training("router", config, sizes, resources, load, available, trained, further)


def _training(
    stage: str, config: RunConfig, sizes: DecoderSizes, resources: TrainingResources, load: Workload,
    available: int | None, trained: int, further: Mapping[str, int],
) -> MemoryEstimate:  # fmt: skip
    zero, width = resources.zero_stage, DTYPE_BYTES[config.training.dtype]

    def share(from_stage: int) -> int:
        return load.workers if zero >= from_stage else 1

    tokens = resources.micro_batch_size * config.training.max_length
    # AdamW's two moments, and from ZeRO-1 on a flat copy of what is trained; all in float32.
    optimizer = trained * (8 if zero == 0 else 12)
    return MemoryEstimate(
        stage,
        {
            "base": math.ceil(width * sizes.parameters / share(3)),
            "trained": math.ceil(4 * trained / share(3)),
            "gradients": math.ceil(4 * trained / share(2)),
            "optimizer": math.ceil(optimizer / share(1)),
            **further,
            "activations": _activations(sizes, width, load.experts * config.mixture.rank, tokens, resources),
            "logits": tokens * sizes.vocabulary * (width + 8),
            "libraries": _libraries(sizes, zero, width, load.on_gpu),
        },
        available,
    )


def _activations(sizes: DecoderSizes, width: int, ranks: int, tokens: int, resources: TrainingResources) -> int:
    """What the layers keep for the backward pass. ranks: n*r, the width of the stacked low-rank products."""
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    linear_inputs = 2 * sizes.hidden + queries + sizes.intermediate
    attention = queries + 2 * keys
    feed_forward = 3 * sizes.intermediate
    # The low-rank product before and after its gate.
    low_rank = 2 * ranks * len(sizes.linears)
    # Two norms, which compute in float32 and keep their input and its normed copy.
    norms = 4 * 4 * sizes.hidden
    a_layer = tokens * (width * (linear_inputs + attention + feed_forward + low_rank) + norms)
    if resources.gradient_checkpointing:
        return a_layer + sizes.layers * tokens * width * sizes.hidden
    return a_layer * sizes.layers


def _libraries(sizes: DecoderSizes, zero: int, width: int, on_gpu: bool) -> int:
    if not on_gpu:
        # Buckets are reserved there, but pages that nothing touches take no memory.
        return _CPU_RUNTIME
    bucket = int(4 * _REDUCE_BUCKET) if zero else 0
    gathered = int(width * min(_LIVE_PARAMETERS, sizes.parameters)) if zero == 3 else 0
    return _GPU_RUNTIME + bucket + gathered


def measuring(
    config: RunConfig, sizes: DecoderSizes, experts: int, on_gpu: bool, available: int | None
) -> MemoryEstimate:
    """The measure stage: the whole mixture on one device, forward only."""
    width = DTYPE_BYTES[config.training.dtype]
    adapters = experts * sizes.lora_parameters(config.mixture.rank)
    tokens = config.training.max_length
    return MemoryEstimate(
        "measure",
        {
            "base": width * sizes.parameters,
            "experts": (4 + width) * adapters,
            "logits": tokens * sizes.vocabulary * (width + 4),
            "libraries": _GPU_RUNTIME if on_gpu else _CPU_RUNTIME,
        },
        available,
    )


@dataclass(frozen=True)
class EngineLoad:
    """One device of a vLLM engine. batched_tokens and sequences: of one step; kv_cache: bytes set aside, or None
    for what one request of full length takes."""

    tensor_parallel: int
    batched_tokens: int
    sequences: int
    kv_cache: int | None
    on_gpu: bool


def generating(config: RunConfig, sizes: DecoderSizes, load: EngineLoad, available: int | None) -> MemoryEstimate:
    """The generate stage, on each device of an engine; what is left of it becomes more KV cache."""
    width = DTYPE_BYTES[config.generation.dtype]
    of_one = config.generation.max_model_len * kv_bytes_per_token(config, sizes, load.tensor_parallel)
    widest = 2 * sizes.intermediate // load.tensor_parallel + 4 * sizes.hidden
    return MemoryEstimate(
        "generate",
        {
            "base": math.ceil(width * sizes.parameters / load.tensor_parallel),
            "KV cache": of_one if load.kv_cache is None else load.kv_cache,
            "activations": width * load.batched_tokens * widest,
            "logits": 8 * load.sequences * sizes.vocabulary,
            "libraries": _GPU_RUNTIME if load.on_gpu else _CPU_RUNTIME,
        },
        available,
    )


def kv_bytes_per_token(config: RunConfig, sizes: DecoderSizes, tensor_parallel: int) -> int:
    """Keys and values of one token on one device; a head is never split."""
    heads = max(1, math.ceil(sizes.kv_heads / tensor_parallel))
    return 2 * sizes.layers * heads * sizes.head_dim * DTYPE_BYTES[config.generation.dtype]

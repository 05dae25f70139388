"""Finds the linears of a decoder that experts attach to, without knowing model families by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from selfmoe_ray.errors import UserError

ROUTER_READS = ("q_proj", "qkv_proj")


def decoder_linears(model: Any) -> list[dict[str, nn.Linear]]:
    """For each decoder layer, its linears by full module name, the one the router reads first.

    Supported: pre-norm decoders whose layers have `self_attn.q_proj` (or a fused `qkv_proj`) and
    plain nn.Linear modules, as Llama, Mistral, Qwen2, Qwen3, Gemma2, Gemma3 and Phi3 do.
    Raises UserError with the reason for anything else.
    """
    kind = type(model).__name__
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UserError(f"base_model: {kind} has no list of decoder layers that experts could attach to")
    prefix = next(name for name, module in model.named_modules() if module is layers)
    return [_layer_linears(kind, layer, f"{prefix}.{index}") for index, layer in enumerate(layers)]


def _layer_linears(kind: str, layer: nn.Module, prefix: str) -> dict[str, nn.Linear]:
    linears: dict[str, nn.Linear] = {}
    for name, module in layer.named_modules():
        where = f"{prefix}.{name}"
        if type(module) is nn.Linear:
            linears[where] = module
        elif isinstance(module, nn.Linear) or "Linear" in type(module).__name__ or type(module).__name__ == "Conv1D":
            raise UserError(
                f"base_model: {kind} has {where} of type {type(module).__name__}; experts attach to plain "
                "linear layers, so give an unquantised checkpoint of a Llama-style decoder"
            )
        elif "experts" in name.split("."):
            raise UserError(f"base_model: {kind} is itself a mixture of experts ({where}); give a dense model")
        elif isinstance(module, nn.Conv1d):
            raise UserError(
                f"base_model: {kind} has convolutions beside or in place of attention ({where}), as state-space models "
                "do, which is not supported; give a model of attention alone"
            )
        elif name.endswith("kv_b_proj"):
            raise UserError(f"base_model: {kind} uses latent attention ({where}), which is not supported")
    reads = [name for name in linears if name.removeprefix(f"{prefix}.self_attn.") in ROUTER_READS]
    if len(reads) != 1:
        raise UserError(
            f"base_model: {kind} has no self_attn.q_proj or self_attn.qkv_proj in {prefix}; "
            "the router reads that layer's input, so this family is not supported"
        )
    return {reads[0]: linears.pop(reads[0]), **linears}

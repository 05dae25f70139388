"""The CPU kernels on tensors: as functions for eager passes, as operations of torch for compiled ones."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfmoe_ray.serving.cpu_kernels.build import load_library

_NAMESPACE = "selfmoe_ray"
_SUFFIX = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_Pointer, _Int, _Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Experts(ctypes.Structure):
    _fields_ = (
        ("a", _Pointer),
        ("b", _Pointer),
        ("part_ends", _Pointer),
        *((name, _Int) for name in ("parts", "experts", "rank", "inputs", "outputs")),
    )


class Kernels(NamedTuple):
    """The two functions below, or the operations of torch that call them."""

    route: Any
    add_experts: Any


def cpu_kernels(dtype: torch.dtype, device: torch.device, is_eager: bool) -> Kernels | None:
    """The kernels for a model; None where its dtype or device has none, or they cannot be built.

    is_eager: no pass is ever compiled, so they may be called without torch's dispatcher.
    """
    if device.type != "cpu" or dtype not in _SUFFIX or load_library() is None:
        return None
    if is_eager:
        return Kernels(route, add_experts)
    _register()
    operations = getattr(torch.ops, _NAMESPACE)
    return Kernels(operations.route, operations.add_experts)


def route(
    hidden: Tensor, theta: Tensor, before: Tensor | None, alpha: float, beta: float, k: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """A layer's logits, alpha * theta x + beta * before, and the gates that they give, both [tokens, n] float32.

    hidden [tokens, hidden], theta [n, hidden] float32, before [tokens, n] float32. k [tokens, 1] int32: so many
    of a token's largest probabilities stay, and its other experts get their weights [tokens, n] float32.
    """
    hidden = _rows(hidden)
    tokens, experts = len(hidden), len(theta)
    logits, gates = torch.empty(tokens, experts), torch.empty(tokens, experts)
    _function("route", hidden.dtype)(
        hidden.data_ptr(),
        hidden.stride(0),
        theta.data_ptr(),
        None if before is None else before.data_ptr(),
        alpha,
        beta,
        k.data_ptr(),
        weights.data_ptr(),
        logits.data_ptr(),
        gates.data_ptr(),
        experts,
        hidden.shape[1],
        tokens,
    )
    return logits, gates


def add_experts(y: Tensor, x: Tensor, gates: Tensor, a: Tensor, b: Tensor, part_ends: Tensor) -> None:
    """y [tokens, outputs] += the gated experts of x [tokens, inputs], in place; gates [tokens, n] float32.

    a [parts, n, rank, inputs] and b [n, rank / 2, outputs, 2], as `KernelExperts` has them; part_ends [parts]
    int64: where the outputs of each part end. They must not move: their addresses are kept.
    """
    x = _rows(x)
    _function("add_experts", x.dtype)(
        _layer(a, b, part_ends), x.data_ptr(), x.stride(0), gates.data_ptr(), len(a[0]), y.data_ptr(), len(x)
    )


_layers: dict[int, tuple[Any, Any]] = {}


def _layer(a: Tensor, b: Tensor, part_ends: Tensor) -> Any:
    address = a.data_ptr()
    if address not in _layers:
        layer = _Experts(address, b.data_ptr(), part_ends.data_ptr(), *a.shape, b.shape[2])
        # The tensors stay with it, so that no other can take their address.
        _layers[address] = ctypes.byref(layer), (layer, a, b, part_ends)
    return _layers[address][0]


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(load_library(), f"{name}_{_SUFFIX[dtype]}")
    function.restype = None
    function.argtypes = {
        "route": [_Pointer, _Int, _Pointer, _Pointer, _Float, _Float, *[_Pointer] * 4, *[_Int] * 3],
        "add_experts": [_Pointer, _Pointer, _Int, _Pointer, _Int, _Pointer, _Int],
    }[name]
    return function


@functools.cache
def _register() -> torch.library.Library:
    library = torch.library.Library(_NAMESPACE, "DEF")
    library.define(
        "route(Tensor hidden, Tensor theta, Tensor? before, float alpha, float beta, Tensor k, Tensor weights)"
        " -> (Tensor, Tensor)"
    )
    library.define("add_experts(Tensor(a!) y, Tensor x, Tensor gates, Tensor a, Tensor b, Tensor part_ends) -> ()")
    library.impl("route", route, "CPU")
    library.impl("add_experts", add_experts, "CPU")
    torch.library.register_fake(f"{_NAMESPACE}::route", _fake_route, lib=library)
    torch.library.register_fake(f"{_NAMESPACE}::add_experts", lambda *_: None, lib=library)
    return library


def _fake_route(hidden: Tensor, theta: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    # Not len(): it would bind a compiled graph to the number of tokens.
    shape = hidden.shape[0], theta.shape[0]
    return hidden.new_empty(shape, dtype=torch.float32), hidden.new_empty(shape, dtype=torch.float32)

"""The CPU kernels on tensors: as operations of torch for compiled passes, bound to a model for eager ones."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfmoe_ray.engine.kernels.build import load_library

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


class _Router(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("theta", "before", "k", "weights", "logits", "gates")),
        *((name, _Int) for name in ("gates_stride", "experts", "width")),
        *((name, _Float) for name in ("alpha", "beta")),
    )


class Kernels(NamedTuple):
    """The two operations of torch: `_route` and `_add_experts` below."""

    route: Any
    add_experts: Any


def cpu_kernels(dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """The kernels for a model; None where its dtype or device has none, or they cannot be built."""
    if device.type != "cpu" or dtype not in _SUFFIX or load_library() is None:
        return None
    _register()
    operations = getattr(torch.ops, _NAMESPACE)
    return Kernels(operations.route, operations.add_experts)


class BoundRouter:
    """`route` of a layer as a function of `hidden` alone, which writes logits and gates; no other tensor moves.

    A decode step makes hundreds of such calls: what they have in common is read once. `logits` may be `before`,
    and rows of `gates` may lie apart. Tensors by token have rows for the most tokens that a pass has.
    """

    def __init__(
        self,
        theta: Tensor,
        before: Tensor | None,
        alpha: float,
        beta: float,
        k: Tensor,
        weights: Tensor,
        logits: Tensor,
        gates: Tensor,
        dtype: torch.dtype,
    ):
        self._held = theta, before, k, weights, logits, gates
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in self._held]
        self._router = ctypes.byref(_Router(*pointers, gates.stride(0), *theta.shape, alpha, beta))
        self._function = _function("route", dtype)
        self._most = len(k)

    def __call__(self, hidden: Tensor) -> None:
        """hidden [tokens, hidden]. Raises ValueError where there are more tokens than rows."""
        hidden = _rows(hidden)
        tokens = hidden.shape[0]
        if tokens > self._most:
            raise ValueError(f"{tokens} tokens in a pass; there is room for {self._most}")
        self._function(self._router, hidden.data_ptr(), hidden.stride(0), tokens)


class BoundExperts:
    """`add_experts` of a layer as a function of y and x; no other tensor moves, and rows of `gates` may lie apart."""

    def __init__(self, a: Tensor, b: Tensor, part_ends: Tensor, gates: Tensor):
        self._held = a, b, part_ends, gates
        self._layer = _layer(a, b, part_ends)
        self._gates, self._stride = gates.data_ptr(), gates.stride(0)
        self._function = _function("add_experts", a.dtype)

    def __call__(self, y: Tensor, x: Tensor) -> None:
        """y [tokens, outputs] += the gated experts of x [tokens, inputs]."""
        x = _rows(x)
        self._function(self._layer, x.data_ptr(), x.stride(0), self._gates, self._stride, y.data_ptr(), x.shape[0])


def _route(
    hidden: Tensor, theta: Tensor, before: Tensor | None, alpha: float, beta: float, k: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """A layer's logits, alpha * theta x + beta * before, and the gates that they give, both [tokens, n] float32.

    hidden [tokens, hidden], theta [n, hidden] float32, before [tokens, n] float32. k [tokens, 1] int32: so many
    of a token's largest probabilities stay, and its other experts get their weights [tokens, n] float32; one
    whose weight is below zero is out of the softmax, and its gate is zero.
    """
    logits, gates = torch.empty(len(hidden), len(theta)), torch.empty(len(hidden), len(theta))
    BoundRouter(theta, before, alpha, beta, k, weights, logits, gates, hidden.dtype)(hidden)
    return logits, gates


def _add_experts(y: Tensor, x: Tensor, gates: Tensor, a: Tensor, b: Tensor, part_ends: Tensor) -> None:
    """y [tokens, outputs] += the gated experts of x [tokens, inputs], in place; gates [tokens, n] float32.

    a [parts, n, rank, inputs] and b [n, rank / 2, outputs, 2], as `KernelExperts` has them; part_ends [parts]
    int64: where the outputs of each part end. They must not move: their addresses are kept.
    """
    x = _rows(x)
    _function("add_experts", x.dtype)(
        _kept_layer(a, b, part_ends), x.data_ptr(), x.stride(0), gates.data_ptr(), a.shape[1], y.data_ptr(), len(x)
    )


_layers: dict[int, tuple[Any, Any]] = {}


def _kept_layer(a: Tensor, b: Tensor, part_ends: Tensor) -> Any:
    address = a.data_ptr()
    if address not in _layers:
        # The tensors stay with it, so that no other can take their address.
        _layers[address] = _layer(a, b, part_ends), (a, b, part_ends)
    return _layers[address][0]


def _layer(a: Tensor, b: Tensor, part_ends: Tensor) -> Any:
    return ctypes.byref(_Experts(a.data_ptr(), b.data_ptr(), part_ends.data_ptr(), *a.shape, b.shape[2]))


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(load_library(), f"{name}_{_SUFFIX[dtype]}")
    function.restype = None
    function.argtypes = {
        "route": [_Pointer, _Pointer, _Int, _Int],
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
    library.impl("route", _route, "CPU")
    library.impl("add_experts", _add_experts, "CPU")
    torch.library.register_fake(f"{_NAMESPACE}::route", _fake_route, lib=library)
    torch.library.register_fake(f"{_NAMESPACE}::add_experts", lambda *_: None, lib=library)
    return library


def _fake_route(hidden: Tensor, theta: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    # Not len(): it would bind a compiled graph to the number of tokens.
    shape = hidden.shape[0], theta.shape[0]
    return hidden.new_empty(shape, dtype=torch.float32), hidden.new_empty(shape, dtype=torch.float32)

"""The mixture's CPU kernels against the same sums in torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from selfmoe_ray.engine.kernels.mixture import BoundExperts, BoundRouter, Kernels, cpu_kernels
from selfmoe_ray.mixture.gate import top_k

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
TOKENS = pytest.mark.parametrize("tokens", [0, 1, 43], ids=["none", "one thread", "all threads"])
N = 5


def operations(dtype: torch.dtype) -> Kernels:
    found = cpu_kernels(dtype, torch.device("cpu"))
    assert found is not None
    return found


def bound_route(hidden: Tensor, theta: Tensor, before: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    """As the operation, in place, with gates that lie apart."""
    alpha, beta, k, weights = rest
    logits = torch.empty(len(hidden), N) if before is None else before.clone()
    gates = torch.empty(len(hidden), 3, N)[:, 1]
    where = None if before is None else logits
    BoundRouter(theta, where, alpha, beta, k, weights, logits, gates, hidden.dtype)(hidden)
    return logits, gates


def bound_add_experts(y: Tensor, x: Tensor, gates: Tensor, *layer: Tensor) -> None:
    """As the operation, with gates that lie apart."""
    apart = torch.stack([torch.zeros_like(gates), gates], dim=1)[:, 1]
    BoundExperts(*layer, apart)(y, x)


@pytest.fixture(params=["bound", "operations"])
def kernels_of(request: pytest.FixtureRequest) -> Callable[[torch.dtype], Kernels]:
    """Both ways to call them, for a dtype."""
    if request.param == "bound":
        return lambda _: Kernels(bound_route, bound_add_experts)
    return operations


def gates_like(tokens: int, kind: str) -> Tensor:
    probabilities = torch.softmax(torch.randn(tokens, N), -1)
    return {"none": torch.zeros(tokens, N), "all": probabilities}.get(kind, top_k(probabilities, 2))


@needs_compiler
@DTYPES
@TOKENS
@pytest.mark.parametrize("kind", ["none", "top 2", "all"])
@pytest.mark.parametrize("rank", [2, 8, 10])
def test_experts_add_their_gated_products(
    dtype: torch.dtype, tokens: int, kind: str, rank: int, kernels_of: Callable[[torch.dtype], Kernels]
) -> None:
    torch.manual_seed(0)
    inputs, outputs = 72, [32, 17, 50]
    # A view with rows apart, as a slice of a wider activation has them.
    x = torch.randn(tokens, 2 * inputs).to(dtype)[:, :inputs]
    a = (torch.randn(len(outputs), N, rank, inputs) / 8).to(dtype)
    b = (torch.randn(N, rank, sum(outputs)) / 4).to(dtype)
    y, gates = torch.randn(tokens, sum(outputs)).to(dtype), gates_like(tokens, kind)
    expected = y.double()
    for part, (low, up) in enumerate(zip(a.double(), b.double().split(outputs, dim=2), strict=True)):
        first = sum(outputs[:part])
        delta = torch.einsum("tn,nri,ti,nro->to", gates.double(), low, x.double(), up)
        expected[:, first : first + outputs[part]] += delta
    pairs = b.unflatten(1, (-1, 2)).transpose(2, 3).contiguous()
    kernels_of(dtype).add_experts(y, x, gates, a, pairs, torch.tensor(outputs).cumsum(0))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@needs_compiler
@DTYPES
@TOKENS
@pytest.mark.parametrize("is_first", [True, False], ids=["first layer", "later layer"])
def test_the_router_gives_each_token_its_top_k(
    dtype: torch.dtype, tokens: int, is_first: bool, kernels_of: Callable[[torch.dtype], Kernels]
) -> None:
    torch.manual_seed(0)
    hidden, theta = torch.randn(tokens, 70).to(dtype), torch.randn(N, 70)
    before = None if is_first else torch.randn(tokens, N)
    k = torch.arange(tokens, dtype=torch.int32)[:, None] % (N + 2)
    weights = torch.rand(tokens, N)
    logits, gates = kernels_of(dtype).route(hidden, theta, before, 0.5, 0.25, k, weights)
    wanted = 0.5 * hidden.float() @ theta.t() + (0 if before is None else 0.25 * before)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    for row, probabilities in enumerate(torch.softmax(logits, -1)):
        count = min(int(k[row]), N)
        kept = top_k(probabilities[None], count)[0] if count else torch.zeros(N)
        torch.testing.assert_close(gates[row], torch.where(kept > 0, kept, weights[row]))


@needs_compiler
@DTYPES
@TOKENS
def test_experts_below_zero_are_not_there_for_the_router(
    dtype: torch.dtype, tokens: int, kernels_of: Callable[[torch.dtype], Kernels]
) -> None:
    torch.manual_seed(0)
    hidden, theta = torch.randn(tokens, 70).to(dtype), torch.randn(N, 70)
    weights = torch.zeros(tokens, N)
    weights[:, [1, 3]] = -1.0
    k = torch.full((tokens, 1), 2, dtype=torch.int32)
    logits, gates = kernels_of(dtype).route(hidden, theta, None, 1.0, 0.0, k, weights)
    wanted = torch.zeros(tokens, N)
    wanted[:, [0, 2, 4]] = top_k(torch.softmax(logits[:, [0, 2, 4]], -1), 2)
    torch.testing.assert_close(gates, wanted)
    torch.testing.assert_close(logits, hidden.float() @ theta.t(), rtol=1e-4, atol=1e-4)


@needs_compiler
@DTYPES
def test_a_token_is_routed_and_computed_alone_as_among_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kernels, ends = operations(dtype), torch.tensor([70])
    hidden, theta, y = torch.randn(43, 72).to(dtype), torch.randn(N, 72), torch.randn(43, 70).to(dtype)
    a, b = torch.randn(1, N, 8, 72).to(dtype), torch.randn(N, 4, 70, 2).to(dtype)
    k, weights = torch.ones(43, 1, dtype=torch.int32), torch.zeros(43, N)

    def layer(rows: slice) -> tuple[Tensor, Tensor]:
        logits, gates = kernels.route(hidden[rows], theta, None, 1.0, 0.0, k[rows], weights[rows])
        kernels.add_experts(y[rows], hidden[rows], gates, a, b, ends)
        return logits, y[rows].clone()

    before = y.clone()
    together = layer(slice(None))
    y.copy_(before)
    alone = zip(*(layer(slice(row, row + 1)) for row in range(43)), strict=True)
    assert all(torch.equal(torch.cat(rows), all_rows) for rows, all_rows in zip(alone, together, strict=True))


@needs_compiler
def test_of_equal_experts_the_first_k_are_taken() -> None:
    route = operations(torch.float32).route
    k = torch.tensor([[1], [3]], dtype=torch.int32)
    _, gates = route(torch.ones(2, 4), torch.zeros(N, 4), None, 1.0, 0.0, k, torch.zeros(2, N))
    assert (gates > 0).tolist() == [[True, False, False, False, False], [True, True, True, False, False]]


@needs_compiler
@DTYPES
def test_a_compiled_pass_has_the_same_sums(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(1, N, 4, 32).to(dtype), torch.randn(N, 2, 48, 2).to(dtype)
    theta, k, weights = torch.randn(N, 32), torch.ones(9, 1, dtype=torch.int32), torch.zeros(9, N)
    x, w, ends = torch.randn(9, 32).to(dtype), torch.randn(48, 32).to(dtype), torch.tensor([48])

    def layer(x: Tensor, kernels: Kernels) -> Tensor:
        _, gates = kernels.route(x, theta, None, 1.0, 0.0, k, weights)
        y = x @ w.t()
        kernels.add_experts(y, x, gates, a, b, ends)
        return y * 2

    registered = operations(dtype)
    # A graph that the kernels bound to nine tokens would be refused.
    torch._dynamo.mark_dynamic(x, 0)
    compiled = torch.compile(lambda x: layer(x, registered), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x, Kernels(bound_route, bound_add_experts)))


def test_a_dtype_without_kernels_has_none() -> None:
    assert cpu_kernels(torch.float16, torch.device("cpu")) is None
    assert cpu_kernels(torch.float32, torch.device("meta")) is None


@needs_compiler
def test_a_pass_with_more_tokens_than_there_are_rows_is_refused() -> None:
    k, weights, theta = torch.ones(2, 1, dtype=torch.int32), torch.zeros(2, N), torch.zeros(N, 4)
    router = BoundRouter(theta, None, 1.0, 0.0, k, weights, weights.clone(), weights.clone(), torch.float32)
    with pytest.raises(ValueError, match="3 tokens in a pass; there is room for 2"):
        router(torch.ones(3, 4))

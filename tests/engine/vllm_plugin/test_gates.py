"""What a request may ask for, and how gates are laid out for a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from selfmoe_ray.base_model import load_model
from selfmoe_ray.config import RouterConfig
from selfmoe_ray.engine.vllm_plugin.gates import ABSENT, RowGate, TokenGates, parse_gate
from selfmoe_ray.engine.vllm_plugin.pass_state import PassState, ranks
from selfmoe_ray.engine.vllm_plugin.recorder import GateRecorder
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.gate import Gate, top_k
from selfmoe_ray.mixture.model import attach
from selfmoe_ray.mixture.spec import MixtureSpec

SPEC = MixtureSpec(experts=("math", "coding"), ranks=(4, 4), alphas=(8.0, 8.0), router=RouterConfig())


@pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("router", RowGate(1, (0.0, 0.0))),
        ("top2", RowGate(2, (0.0, 0.0))),
        ("base", RowGate(0, (0.0, 0.0))),
        ("uniform", RowGate(0, (0.5, 0.5))),
        ("coding", RowGate(0, (0.0, 1.0))),
        ("random", RowGate(0, (0.0, 0.0), is_random=True)),
        ({"math": 0.5, "coding": 0.25}, RowGate(0, (0.5, 0.25))),
        ({"router": {"only": ["coding"]}}, RowGate(1, (ABSENT, 0.0))),
    ],
)
def test_a_requests_gate_as_a_row(name: object, gate: RowGate) -> None:
    assert parse_gate(name, SPEC) == gate


@pytest.mark.parametrize("value", ["top0", "top3", "", "Math", 1, True, ["math"]])
def test_unknown_names_are_refused_with_the_known_ones(value: object) -> None:
    with pytest.raises(UserError, match=r"top1 to top2, an expert \(math, coding\), weights by expert"):
        parse_gate(value, SPEC)


def test_each_token_row_has_its_requests_gate_and_the_default_returns() -> None:
    rows = TokenGates(SPEC, max_tokens=8)
    rows.write([None, parse_gate("coding", SPEC), parse_gate("top2", SPEC)], np.zeros(3, int), np.array([2, 1, 3]))
    k, weights = rows.read(6)
    assert k[:, 0].tolist() == [1, 1, 0, 2, 2, 2]
    assert weights.tolist() == [[0, 0], [0, 0], [0, 1], [0, 0], [0, 0], [0, 0]]
    rows.write([None], np.array([7]), np.array([4]))
    k, weights = rows.read(8)
    assert k[:, 0].tolist() == [1] * 8 and not weights.any()


def test_random_experts_go_by_position_and_not_by_batch() -> None:
    rows = TokenGates(SPEC, max_tokens=512)
    rows.write([parse_gate("random", SPEC)], np.array([0]), np.array([400]))
    whole = rows.read(400)[1].clone()
    assert torch.equal(whole.sum(1), torch.ones(400)) and whole.unique().tolist() == [0, 1]
    assert whole.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    names = ["coding", "random", None, "random"]
    gates = [parse_gate(name, SPEC) if name else None for name in names]
    rows.write(gates, np.array([9, 100, 0, 30]), np.array([2, 50, 1, 10]))
    k, weights = rows.read(63)
    assert torch.equal(weights[2:52], whole[100:150]) and torch.equal(weights[53:], whole[30:40])
    assert weights[:2].tolist() == [[0, 1]] * 2 and not weights[52].any()
    assert k[:, 0].tolist() == [0] * 52 + [1] + [0] * 10


def test_random_is_the_same_system_in_transformers_and_in_the_engine(tiny_model_dir: Callable[..., Path]) -> None:
    model = attach(load_model(str(tiny_model_dir()), "float32"), SPEC)
    with model.record_gates() as recorded:
        model(gate=Gate.random(), input_ids=torch.randint(4, 300, (1, 40)), use_cache=False)
    rows = TokenGates(SPEC, max_tokens=64)
    rows.write([parse_gate("random", SPEC)], np.array([0]), np.array([40]))
    for layer in recorded[0][:, 0]:
        assert torch.equal(layer, rows.read(40)[1])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_ranks_select_what_top_k_selects(k: int) -> None:
    values = torch.rand(100, 5, generator=torch.Generator().manual_seed(0))
    kept = torch.where(ranks(values, torch.ones(5, 5, dtype=torch.bool).tril(-1)) < k, values, 0.0)
    assert torch.equal(kept, top_k(values, k))


def test_of_equal_values_exactly_k_are_selected() -> None:
    equal = torch.full((1, 4), 0.25)
    assert ranks(equal, torch.ones(4, 4, dtype=torch.bool).tril(-1)).tolist() == [[0, 1, 2, 3]]


def test_a_pass_leaves_nothing_behind() -> None:
    state = PassState(SPEC, TokenGates(SPEC, max_tokens=8), GateRecorder(2, 8, 2), parts=3, dtype=torch.float32)
    state.read(0, torch.ones(3, 6), torch.ones(2, 6))
    state.read(1, torch.ones(3, 6), torch.ones(2, 6))
    assert state.gates is not None and state.gates.shape == (3, 3 * 2 * SPEC.rank)
    state.end()
    assert state.gates is None and state.logits is None


ONLY_CODING = {"router": {"only": ["coding"]}}


@pytest.mark.parametrize("names", [[None, None], [None, "top2"], ["coding", "uniform"], [{"math": 0.3}, ONLY_CODING]])
@pytest.mark.parametrize("accumulate", [True, False])
def test_an_eager_engine_routes_as_a_compiled_one(names: list[object], accumulate: bool) -> None:
    spec = SPEC.model_copy(update={"router": RouterConfig(accumulate=accumulate)})
    rows = TokenGates(spec, max_tokens=8)
    rows.write([parse_gate(name, spec) if name else None for name in names], np.array([0, 5]), np.array([2, 1]))
    draw = torch.Generator().manual_seed(0)
    hidden, theta = torch.randn(2, 3, 6, generator=draw), torch.randn(2, 2, 6, generator=draw)
    gates = []
    for is_eager in (True, False):
        state = PassState(spec, rows, GateRecorder(2, 8, 2), 3, torch.float32, is_eager)
        for layer in range(2):
            state.read(layer, hidden[layer], theta[layer])
        assert state.gates is not None
        gates.append((torch.stack(state.of_layers), state.gates))
    torch.testing.assert_close(*gates)


def test_the_router_sees_only_the_experts_that_a_request_names() -> None:
    rows = TokenGates(SPEC, max_tokens=8)
    rows.write([parse_gate(ONLY_CODING, SPEC), None], np.zeros(2, int), np.array([2, 1]))
    state = PassState(SPEC, rows, GateRecorder(1, 8, 2), 3, torch.float32)
    # The router would choose the first.
    state.read(0, torch.ones(3, 6), torch.tensor([[1.0] * 6, [0.0] * 6]))
    first = torch.softmax(state.logits[2], -1)[0]  # type: ignore[index]
    torch.testing.assert_close(state.of_layers[0], torch.tensor([[0.0, 1.0], [0.0, 1.0], [float(first), 0.0]]))

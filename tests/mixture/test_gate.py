from __future__ import annotations

import pytest
import torch

from selfmoe_ray.config import RouterConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.gate import Gate, is_reserved, random_gates, read_gate, top_k
from selfmoe_ray.mixture.router import Router

CPU = torch.device("cpu")
EXPERTS = ["math", "coding", "law"]


def test_top_k_keeps_the_largest_without_renormalising() -> None:
    gates = top_k(torch.tensor([[0.5, 0.2, 0.3]]), 2)
    assert torch.equal(gates, torch.tensor([[0.5, 0.0, 0.3]]))


def test_top_k_of_all_changes_nothing() -> None:
    probabilities = torch.rand(4, 3).softmax(-1)
    assert torch.equal(top_k(probabilities, 3), probabilities)


def test_fixed_gates() -> None:
    assert torch.equal(Gate.uniform().fixed(4, CPU), torch.full((1, 1, 4), 0.25))
    assert torch.equal(Gate.expert(1).fixed(3, CPU), torch.tensor([[[0.0, 1.0, 0.0]]]))
    weights = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert torch.equal(Gate.rows(weights).fixed(2, CPU), weights[:, None])
    assert Gate.off().fixed(2, CPU) is None and Gate.router(1).fixed(2, CPU) is None


def test_wrong_gates_are_refused() -> None:
    with pytest.raises(IndexError, match="expert 3 asked for, the mixture has 3"):
        Gate.expert(3).fixed(3, CPU)
    with pytest.raises(ValueError, match=r"must be \[batch, 3\], found \[2, 2\]"):
        Gate.rows(torch.zeros(2, 2)).fixed(3, CPU)


def test_random_gates_are_even_and_go_by_position_alone() -> None:
    gates = random_gates(torch.arange(4000), 4)
    assert torch.equal(gates.sum(-1), torch.ones(4000)) and gates.unique().tolist() == [0, 1]
    assert torch.allclose(gates.mean(0), torch.full((4,), 0.25), atol=0.03)
    assert torch.equal(random_gates(torch.tensor([[7, 3]]), 4), gates[[7, 3]][None])


@pytest.mark.parametrize(
    ("name", "kind", "k", "index"),
    [("router", "router", 2, 0), ("top3", "router", 3, 0), ("base", "off", 1, 0), ("coding", "expert", 1, 1)],
)
def test_a_name_stands_for_a_gate(name: str, kind: str, k: int, index: int) -> None:
    gate = read_gate(name, EXPERTS, num_experts_per_tok=2)
    assert (gate.kind, gate.k, gate.index) == (kind, k, index)


def test_names_of_gates_are_no_names_of_experts() -> None:
    assert all(map(is_reserved, ("router", "base", "uniform", "random", "top1", "top12")))
    assert not any(map(is_reserved, ("math", "top", "topology", "base2")))


def test_weights_are_the_same_for_every_token() -> None:
    gate = read_gate({"law": 0.3, "math": 1}, EXPERTS, num_experts_per_tok=2)
    torch.testing.assert_close(gate.fixed(3, CPU), torch.tensor([[[1.0, 0.0, 0.3]]]))


@pytest.mark.parametrize(
    ("value", "k", "among"),
    [
        ({"only": ["law", "math"], "k": 1}, 1, (0, 2)),
        ({"only": ["law", "math"]}, 2, (0, 2)),
        ({"only": ["law"]}, 1, (2,)),
        ({"only": EXPERTS}, 2, None),
        ({"k": 3}, 3, None),
    ],
)
def test_the_router_among_some_experts(value: object, k: int, among: tuple[int, ...] | None) -> None:
    gate = read_gate({"router": value}, EXPERTS, num_experts_per_tok=2)
    assert (gate.kind, gate.k, gate.among) == ("router", k, among)


def test_the_router_among_some_experts_is_that_of_a_mixture_of_these() -> None:
    torch.manual_seed(0)
    router, hidden = Router(1, 8, 3, RouterConfig()), torch.randn(2, 5, 8)
    theta = router.theta[0].weight
    summed = router.accumulated(0, hidden, None)
    few = torch.softmax(router.shape.tau * hidden @ theta[[0, 2]].t(), -1)
    for k in (1, 2):
        gates = router.gates(0, summed, k, among=(0, 2))
        torch.testing.assert_close(gates[..., [0, 2]], top_k(few, k))
        assert not gates[..., 1].any()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"poetry": 1.0}, "names 'poetry'; the experts are math, coding, law"),
        ({3: 1.0}, "names 3; the experts are"),
        ({"math": -0.1}, "weight of math is -0.1; it must be a number from 0 to 16"),
        ({"math": float("nan")}, "weight of math is nan"),
        ({"math": float("inf")}, "weight of math is inf"),
        ({"math": 1e30}, "weight of math is 1e\\+30"),
        ({"math": "1"}, "weight of math is '1'"),
        ({"math": True}, "weight of math is True"),
        ({"math": None}, "weight of math is None"),
        ({"math": 0, "law": 0.0}, 'no weight is above 0; the base alone is "base"'),
        ({}, "no weight is above 0"),
        ({"router": "math"}, "router is 'math'; it must be an object with only, k or both"),
        ({"router": {}}, "router is {}"),
        ({"router": {"top": 1}}, "it must be an object with only, k or both"),
        ({"router": {"only": ["math"]}, "law": 1}, "names 'router'"),
        ({"router": {"only": []}}, r"only is \[\]; it must be a list of experts"),
        ({"router": {"only": "math"}}, "only is 'math'; it must be a list"),
        ({"router": {"only": ["math", "math"]}}, "each of them once"),
        ({"router": {"only": ["math", "poetry"]}}, "names 'poetry'"),
        ({"router": {"only": [["math"]]}}, r"names \['math'\]"),
        ({"router": {"only": ["math", "law"], "k": 3}}, "k is 3; it must be a whole number from 1 to 2"),
        ({"router": {"k": 0}}, "k is 0; it must be a whole number from 1 to 3"),
        ({"router": {"k": True}}, "k is True"),
        ({"router": {"k": 1.0}}, "k is 1.0"),
    ],
)
def test_a_malformed_gate_is_refused_with_its_reason(value: object, message: str) -> None:
    with pytest.raises(UserError, match=f"mixse_gate.*{message}"):
        read_gate(value, EXPERTS, num_experts_per_tok=2)

from __future__ import annotations

import pytest
import torch

from selfmoe_ray.mixture.gate import Gate, is_reserved, named_gate, random_gates, top_k

CPU = torch.device("cpu")


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
    gate = named_gate(name, ["math", "coding", "law"], num_experts_per_tok=2)
    assert (gate.kind, gate.k, gate.index) == (kind, k, index)


def test_names_of_gates_are_no_names_of_experts() -> None:
    assert all(map(is_reserved, ("router", "base", "uniform", "random", "top1", "top12")))
    assert not any(map(is_reserved, ("math", "top", "topology", "base2")))

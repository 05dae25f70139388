from __future__ import annotations

import pytest
import torch

from selfmoe_ray.mixture.gate import Gate, random_gates, top_k

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


def test_random_gates_are_even_and_repeatable() -> None:
    ids = torch.randint(0, 50_000, (20, 200), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(200).expand(20, 200)
    gates = random_gates(ids, positions, layer=3, n=4, k=1, seed=0)
    assert torch.equal(gates.sum(-1), torch.ones(20, 200))
    assert torch.allclose(gates.mean((0, 1)), torch.full((4,), 0.25), atol=0.03)
    assert torch.equal(gates[5:6, 10:12], random_gates(ids[5:6, 10:12], positions[:1, 10:12], 3, 4, 1, 0))
    for other in (random_gates(ids, positions, 4, 4, 1, 0), random_gates(ids, positions, 3, 4, 1, 1)):
        assert 0.2 < (gates * other).sum(-1).mean() < 0.3


def test_random_gates_share_among_k() -> None:
    ids = torch.arange(30)[None]
    gates = random_gates(ids, ids, layer=0, n=4, k=2, seed=0)
    assert torch.equal((gates == 0.5).sum(-1), torch.full((1, 30), 2))

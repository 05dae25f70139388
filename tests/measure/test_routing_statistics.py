import pytest
import torch

from selfmoe_ray.measure.routing_statistics import RoutingStatistics, entropy_bits, find_collapse

EXPERTS = ["math", "coding"]


def test_shares_and_mean_gates_count_only_the_chosen_tokens():
    statistics = RoutingStatistics(["math", "coding"], EXPERTS, num_layers=2)
    gates = torch.tensor([
        [[[0.9, 0.0], [0.0, 0.6]], [[0.0, 0.8], [0.5, 0.0]]],
        [[[0.7, 0.0], [0.8, 0.0]], [[0.0, 1.0], [0.5, 0.0]]],
    ])  # fmt: skip
    counted = torch.tensor([[True, True], [True, False]])
    statistics.add(["math", "coding"], gates, counted)
    domains = statistics.summary()["domains"]
    assert domains["math"]["tokens"] == 2
    assert domains["math"]["top1_share"] == pytest.approx([0.75, 0.25])
    assert domains["math"]["mean_gate"] == pytest.approx([0.6, 0.15])
    assert domains["math"]["layers"]["top1_share"] == [[0.5, 0.5], [1.0, 0.0]]
    assert domains["coding"]["tokens"] == 1
    assert domains["coding"]["mean_gate"] == pytest.approx([0.0, 0.9])
    assert domains["coding"]["entropy_bits"] == 0


def test_passes_add_up():
    gates = torch.rand(3, 4, 5, 2, generator=torch.Generator().manual_seed(0))
    counted = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.3
    domains = ["math", "coding", "math", "coding"]
    whole, pieces = (RoutingStatistics(["math", "coding"], EXPERTS, 3) for _ in range(2))
    whole.add(domains, gates, counted)
    for row in range(4):
        pieces.add(domains[row : row + 1], gates[:, row : row + 1], counted[row : row + 1])
    assert whole.summary() == pieces.summary()


def test_a_domain_without_tokens_is_left_out():
    statistics = RoutingStatistics(["math", "coding"], EXPERTS, num_layers=1)
    statistics.add(["math"], torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[True]]))
    assert list(statistics.summary()["domains"]) == ["math"]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"math": [0.95, 0.05], "coding": [0.92, 0.08]}, {"expert": "math", "share": 0.92}),
        ({"math": [0.95, 0.05], "coding": [0.05, 0.95]}, None),
        ({"math": [0.95, 0.05], "coding": [0.9, 0.1]}, None),
        ({"math": [0.95, 0.05]}, None),
    ],
)
def test_collapse_is_one_expert_for_every_domain(shares, expected):
    assert find_collapse(shares, EXPERTS) == expected


def test_a_single_expert_is_no_collapse():
    assert find_collapse({"math": [1.0], "coding": [1.0]}, ["math"]) is None


def test_entropy_of_an_even_use_is_log2_of_the_experts():
    assert entropy_bits([0.25] * 4) == pytest.approx(2)
    assert entropy_bits([1.0, 0.0]) == 0

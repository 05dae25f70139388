import pytest
import torch

from selfmoe_ray.measure.nll import batch_nll, make_batches
from selfmoe_ray.measure.scores import Sample, score_systems, summarise
from selfmoe_ray.mixture.gate import Gate

DOMAINS = ["math", "coding", "knowledge"]


@pytest.fixture(scope="module")
def measured(mixture, rows):
    events = []
    batches = [
        batch
        for row_set, chosen in (("held_out", rows[::2]), ("seeds", rows[1::2]))
        for batch in make_batches(row_set, chosen, pad_token_id=2, max_tokens=200)
    ]
    samples, routing = score_systems(mixture, batches, DOMAINS, lambda kind, **fields: events.append((kind, fields)))
    return samples, routing, events


def test_every_system_scores_every_row_once(measured, rows):
    samples, _, events = measured
    systems = [
        "base",
        "expert-math",
        "expert-coding",
        "expert-knowledge",
        "uniform",
        "random",
        "mixse",
        "oracle",
    ]
    assert list(dict.fromkeys(sample.system for sample in samples)) == systems
    assert len({(sample.system, sample.row) for sample in samples}) == len(samples) == len(systems) * len(rows)
    assert {kind for kind, _ in events} == {"measure"}


def test_the_oracle_is_the_one_hot_gate_of_each_rows_domain(measured, mixture, rows):
    samples, _, _ = measured
    oracle = {sample.row: sample.nll for sample in samples if sample.system == "oracle"}
    for batch in make_batches("seeds", rows, pad_token_id=2, max_tokens=200):
        one_hot = torch.eye(3)[[DOMAINS.index(row.domain) for row in batch.rows]]
        expected = batch_nll(mixture, batch, Gate.rows(one_hot))
        assert [oracle[row.id] for row in batch.rows] == pytest.approx(expected, abs=1e-4)


def test_routing_counts_the_response_tokens_of_each_row_set(measured, rows):
    _, routing, _ = measured
    assert set(routing) == {"held_out", "seeds"}
    for row_set, chosen in (("held_out", rows[::2]), ("seeds", rows[1::2])):
        for domain, values in routing[row_set].summary()["domains"].items():
            expected = sum(row.response_tokens for row in chosen if row.domain == domain)
            assert values["tokens"] == expected
            assert sum(values["top1_share"]) == pytest.approx(1)
            assert 0 < sum(values["mean_gate"]) <= 1


def test_the_summary_weighs_domains_the_same_and_pairs_rows():
    nll = {"mixse": [1.0, 2.0, 4.0], "base": [2.0, 2.0, 3.0]}
    samples = [
        Sample("seeds", domain, row, system, 10, values[index])
        for system, values in nll.items()
        for index, (domain, row) in enumerate([("math", "m0"), ("math", "m1"), ("coding", "c0")])
    ]
    table = summarise(samples, DOMAINS)["row_sets"]["seeds"]
    assert table["rows"] == {"math": 2, "coding": 1}
    assert table["tokens"] == {"math": 20, "coding": 10}
    base = table["systems"]["base"]
    assert base["nll"] == {"math": 2.0, "coding": 3.0}
    assert base["mean_nll"] == 2.5
    assert base["mixse_minus"]["math"] == {"difference": -0.5, "standard_error": pytest.approx(0.5)}
    assert base["mixse_minus_mean"] == {"difference": 0.25, "standard_error": None}
    assert table["systems"]["mixse"]["mixse_minus_mean"]["difference"] == 0


def test_a_run_without_the_router_has_no_differences():
    table = summarise([Sample("seeds", "math", "m0", "base", 3, 1.0)], DOMAINS)["row_sets"]["seeds"]
    assert table["systems"]["base"]["mixse_minus_mean"] is None


def test_several_row_sets_are_also_pooled():
    nll = {"mixse": [1.0, 2.0, 6.0], "base": [2.0, 2.0, 5.0]}
    samples = [
        Sample(row_set, "math", row, system, 10, values[index])
        for system, values in nll.items()
        for index, (row_set, row) in enumerate([("held_out", "m0"), ("held_out", "m1"), ("seeds", "s0")])
    ]
    tables = summarise(samples, DOMAINS)["row_sets"]
    assert list(tables) == ["all", "held_out", "seeds"]
    assert tables["all"]["rows"] == {"math": 3} and tables["all"]["systems"]["mixse"]["mean_nll"] == 3.0
    assert tables["held_out"]["systems"]["mixse"]["mean_nll"] == 1.5

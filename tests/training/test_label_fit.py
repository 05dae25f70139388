import random

import pytest
import torch

from selfmoe_ray.config import MixtureConfig, RouterConfig
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import attach
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.training.dataset import IGNORED, TokenizedRow, collate
from selfmoe_ray.training.label_fit import collect_features, fit_to_labels

DOMAINS = ["ant", "bee", "cat"]
PAD = 2


def make_rows(domain: str, count: int = 40) -> list[TokenizedRow]:
    """Rows whose tokens come from a range of the domain's own, but for a third that all share."""
    draw = random.Random(domain)
    first = 10 + 60 * DOMAINS.index(domain)
    rows = []
    for number in range(count):
        ids = [
            draw.randrange(first, first + 60) if draw.random() < 0.67 else draw.randrange(200, 210)
            for _ in range(draw.randint(12, 24))
        ]
        rows.append(TokenizedRow(f"{domain}/{number}", domain, ids, [IGNORED] * 4 + ids[4:]))
    return rows


def make_mixture(base, shape: RouterConfig):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return attach(model, MixtureSpec.uniform(DOMAINS, MixtureConfig(rank=4, router=shape)))


@pytest.mark.parametrize("scope", ["layer", "shared"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_fit_separates_separable_domains(tiny_model_dir, scope, accumulate):
    model = make_mixture(tiny_model_dir(), RouterConfig(scope=scope, accumulate=accumulate))
    rows = [row for domain in DOMAINS for row in make_rows(domain)]
    report = fit_to_labels(model, rows, 1500, PAD, seed=0)
    assert report.train_tokens > 1000 and report.held_out_tokens > 50
    assert len(report.train_accuracy) == 2
    # Two thirds of the tokens tell their domain, chance is one third, so 0.78 is the most one can have.
    # One theta for both layers of a random model has half the parameters and separates less.
    assert report.held_out_accuracy[-1] > (0.6 if scope == "layer" else 0.45)


def test_fitted_gates_choose_the_domain_of_unseen_rows(tiny_model_dir):
    model = make_mixture(tiny_model_dir(), RouterConfig())
    rows = [row for domain in DOMAINS for row in make_rows(domain)]
    fit_to_labels(model, rows[:39] + rows[40:79] + rows[80:119], 1500, PAD, seed=0)
    for index, unseen in enumerate((rows[39], rows[79], rows[119])):
        with model.record_gates() as gates:
            model(gate=Gate.router(3), input_ids=collate([unseen], PAD)["input_ids"])
        assert gates[0].mean((0, 1, 2)).argmax() == index


def test_tokens_are_drawn_evenly_and_the_fit_is_repeatable(tiny_model_dir):
    rows = [row for domain, count in zip(DOMAINS, (40, 10, 40), strict=True) for row in make_rows(domain, count)]
    models = [make_mixture(tiny_model_dir(), RouterConfig()) for _ in range(2)]
    reports = [fit_to_labels(model, rows, 450, PAD, seed=1) for model in models]
    assert reports[0] == reports[1]
    assert 450 <= reports[0].train_tokens + reports[0].held_out_tokens < 450 + 3 * 24
    first, second = ([theta.detach() for theta in model.router_parameters()] for model in models)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_features_are_those_of_the_plain_base_without_padding(tiny_model_dir):
    model = make_mixture(tiny_model_dir(), RouterConfig())
    rows = make_rows("bee")[:3]
    features = collect_features(model, rows, PAD)
    assert features.hidden.shape == (2, sum(len(row.input_ids) for row in rows), 64)
    assert features.labels.eq(1).all()
    alone = collect_features(model, [min(rows, key=lambda row: len(row.input_ids))], PAD)
    count = alone.hidden.shape[1]
    torch.testing.assert_close(features.hidden[:, :count], alone.hidden, atol=0.02, rtol=0.02)

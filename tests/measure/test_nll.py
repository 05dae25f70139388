import copy

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from selfmoe_ray.measure.nll import batch_nll, make_batches
from selfmoe_ray.mixture.checkpoint import save_expert
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.systems import systems
from selfmoe_ray.training.dataset import IGNORED


def score(model, rows, gate, max_tokens=256):
    scores = {}
    for batch in make_batches("seeds", rows, pad_token_id=2, max_tokens=max_tokens):
        scores |= dict(zip([row.id for row in batch.rows], batch_nll(model, batch, gate), strict=True))
    return scores


def reference_nll(model, row):
    """The loss that transformers itself computes on one row without padding."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss.item()


def test_the_base_agrees_with_transformers(mixture, rows, tiny_model_dir):
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir(), dtype=torch.float32).eval()
    scores = score(mixture, rows, Gate.off())
    assert scores == pytest.approx({row.id: reference_nll(plain, row) for row in rows}, abs=1e-4)


def test_an_expert_agrees_with_peft(mixture, rows, tiny_model_dir, tmp_path):
    save_expert(mixture, 1, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir(), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    scores = score(mixture, rows, Gate.expert(1))
    assert scores == pytest.approx({row.id: reference_nll(adapted, row) for row in rows}, abs=1e-4)
    assert scores != pytest.approx(score(mixture, rows, Gate.off()), abs=1e-2)


@pytest.mark.parametrize("system", ["base", "uniform", "random", "mixse", "expert-math"])
def test_a_rows_score_does_not_depend_on_its_batch(mixture, rows, system):
    gate = systems(mixture.spec)[system]
    alone = score(mixture, rows, gate, max_tokens=1)
    assert score(mixture, rows, gate, max_tokens=10_000) == pytest.approx(alone, abs=1e-4)


def test_batches_hold_every_row_once_within_the_limit(rows):
    batches = make_batches("seeds", rows, pad_token_id=2, max_tokens=150)
    assert sorted(row.id for batch in batches for row in batch.rows) == sorted(row.id for row in rows)
    assert all(batch.input_ids.numel() <= 150 for batch in batches)
    lengths = [len(row.input_ids) for batch in batches for row in batch.rows]
    assert lengths == sorted(lengths, reverse=True)


def test_the_positions_that_count_predict_the_response(rows):
    for batch in make_batches("seeds", rows, pad_token_id=2, max_tokens=300):
        assert batch.predicts.sum(1).tolist() == [row.response_tokens for row in batch.rows]


def test_tokens_after_the_response_do_not_count(mixture, rows):
    longer = copy.deepcopy(rows[3])
    longer.input_ids.append(7)
    longer.labels.append(IGNORED)
    assert score(mixture, [longer], Gate.off()) == pytest.approx(score(mixture, [rows[3]], Gate.off()), abs=1e-4)

import pytest
import torch

from selfmoe_ray.measure.nll import response_start
from selfmoe_ray.measure.passages import answer, passage, token_texts
from selfmoe_ray.mixture.gate import Gate

PROMPTS = ["What is the capital", "A train travels 60 miles in 90 minutes;"]


def test_token_texts_join_to_the_text(tokenizer):
    text = "Paris is größer — 北京 🚂 of"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_texts(tokenizer, ids)
    assert len(pieces) == len(ids) > len("Paris is")
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_passage_has_the_gates_that_predicted_each_token(mixture, tokenizer, rows):
    row = rows[5]
    traced = passage(mixture, tokenizer, row)["tokens"]
    assert len(traced) == row.response_tokens
    with mixture.record_gates() as recorded, torch.inference_mode():
        mixture(input_ids=torch.tensor([row.input_ids]))
    expected = recorded[0][:, 0, response_start(row) - 1 : -1].mean(0)
    assert torch.tensor([token["gate"] for token in traced]) == pytest.approx(expected, abs=1e-4)
    assert [token["expert"] for token in traced] == expected.argmax(-1).tolist()


def test_answers_in_a_batch_are_the_greedy_answers_alone(mixture, tokenizer):
    answers = answer(mixture, tokenizer, PROMPTS, max_new_tokens=12)
    for prompt, found in zip(PROMPTS, answers, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        alone = mixture.generate(gate=Gate.router(1), **inputs, max_new_tokens=12, do_sample=False, pad_token_id=2)
        ids = alone[0, inputs["input_ids"].shape[1] :].tolist()
        assert found["answer"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert found["finished"] == (tokenizer.eos_token_id in ids)
        assert "".join(token["text"] for token in found["tokens"]) == found["answer"]

"""Which experts the tokens of a text used: reference responses and MiXSE's own answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfmoe_ray.measure.nll import response_start
from selfmoe_ray.mixture.model import MixtureModel
from selfmoe_ray.training.dataset import TokenizedRow


def token_texts(tokenizer: Any, token_ids: list[int]) -> list[str]:
    """The text that each token adds; characters spread over several tokens come with the last of them."""
    texts: list[str] = []
    written = ""
    for end in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and end < len(token_ids):
            texts.append("")
            continue
        texts.append(text[len(written) :])
        written = text
    return texts


def tokens_with_gates(tokenizer: Any, token_ids: list[int], gates: Tensor) -> list[dict[str, Any]]:
    """Each token's text, its mean gate over layers [n] and its top expert's index.

    token_ids: the tokens [seq]. gates [layers, seq, n]: of the positions that predicted them.
    """
    means = gates.float().mean(0)
    return [
        {"text": text, "gate": [round(value, 4) for value in gate.tolist()], "expert": int(gate.argmax())}
        for text, gate in zip(token_texts(tokenizer, token_ids), means, strict=True)
    ]


@torch.inference_mode()
def passage(model: MixtureModel, tokenizer: Any, row: TokenizedRow) -> dict[str, Any]:
    """A row's reference response, each token with the MiXSE gates of the position that predicts it."""
    input_ids = torch.tensor([row.input_ids], device=_device(model))
    tokens = response_with_gates(model, tokenizer, input_ids, response_start(row))
    return {"domain": row.domain, "row": row.id, "tokens": tokens}


def response_with_gates(model: MixtureModel, tokenizer: Any, input_ids: Tensor, start: int) -> list[dict[str, Any]]:
    """The tokens from `start` of one row [1, seq], in one pass; see `tokens_with_gates`."""
    with model.record_gates() as recorded:
        model(input_ids=input_ids, use_cache=False, logits_to_keep=1)
    gates = recorded[0][:, 0, start - 1 : -1].cpu()
    return tokens_with_gates(tokenizer, input_ids[0, start:].tolist(), gates)


@torch.inference_mode()
def answer(model: MixtureModel, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[dict[str, Any]]:
    """MiXSE's greedy answers to prompts, in one batch padded on the left, with each token's gates.

    Each is {"answer": text, "finished": whether it ended by itself, "tokens": tokens_with_gates}.
    """
    encoded = tokenizer(prompts)["input_ids"]
    width = max(map(len, encoded))
    device = _device(model)
    padded = [[tokenizer.pad_token_id] * (width - len(ids)) + ids for ids in encoded]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded]
    generated = model.generate(
        input_ids=torch.tensor(padded, device=device),
        attention_mask=torch.tensor(mask, device=device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    answers = []
    for prompt_ids, row in zip(encoded, generated[:, width:].tolist(), strict=True):
        finished = tokenizer.eos_token_id in row
        ids = row[: row.index(tokenizer.eos_token_id)] if finished else row
        sequence = torch.tensor([prompt_ids + ids], device=device)
        tokens = response_with_gates(model, tokenizer, sequence, len(prompt_ids)) if ids else []
        answers.append({
            "answer": tokenizer.decode(ids, skip_special_tokens=True),
            "finished": finished,
            "tokens": tokens,
        })  # fmt: skip
    return answers


def _device(model: MixtureModel) -> torch.device:
    return next(model.base.parameters()).device

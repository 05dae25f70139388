"""Negative log-likelihood of reference responses, in nats per response token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import MixtureModel
from selfmoe_ray.training.dataset import IGNORED, TokenizedRow, collate
from selfmoe_ray.training.loop import response_nll


@dataclass(frozen=True)
class Batch:
    """Rows of one row set, padded on the right: input_ids, attention_mask and labels are [batch, seq]."""

    row_set: str
    rows: list[TokenizedRow]
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @property
    def predicts(self) -> Tensor:
        """[batch, seq - 1]: whether position t predicts a response token."""
        return self.labels[:, 1:] != IGNORED


def make_batches(
    row_set: str, rows: Sequence[TokenizedRow], pad_token_id: int, max_tokens: int, device: str = "cpu"
) -> list[Batch]:
    """Longest rows first, as many a batch as fit in `max_tokens` with their padding (at least one)."""
    groups: list[list[TokenizedRow]] = []
    for row in sorted(rows, key=lambda row: (-len(row.input_ids), row.id)):
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0].input_ids) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [
        Batch(row_set, group, **{key: value.to(device) for key, value in collate(group, pad_token_id).items()})
        for group in groups
    ]


@torch.inference_mode()
def batch_nll(model: MixtureModel, batch: Batch, gate: Gate) -> list[float]:
    """Each row's NLL under a gate: the mean over its response tokens, in nats, summed in float32."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
    return (response_nll(model, model, gate, inputs) / batch.predicts.sum(1)).tolist()


def response_start(row: TokenizedRow) -> int:
    """The position of the first response token; at least 1, as every prompt has a token."""
    return next(position for position, label in enumerate(row.labels) if label != IGNORED)

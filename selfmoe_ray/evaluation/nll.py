"""Negative log-likelihood of reference responses, in nats per response token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import MixtureModel

IGNORED = -100


@dataclass(frozen=True)
class MeasuredRow:
    """A tokenized row that no stage trained on.

    row_set: "held_out" (generated examples kept back) or "seeds" (human-written, not shown to the
    method). labels: input_ids on the response, IGNORED on the prompt.
    """

    id: str
    row_set: str
    domain: str
    input_ids: list[int]
    labels: list[int]

    @property
    def response_start(self) -> int:
        """The position of the first response token; it is at least 1."""
        return next(position for position, label in enumerate(self.labels) if label != IGNORED)

    @property
    def response_tokens(self) -> int:
        """How many tokens the NLL is a mean of."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right: input_ids, attention_mask and labels are [batch, seq]."""

    rows: list[MeasuredRow]
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @property
    def predicts(self) -> Tensor:
        """[batch, seq - 1]: whether position t predicts a response token."""
        return self.labels[:, 1:] != IGNORED


def make_batches(
    rows: Sequence[MeasuredRow], pad_token_id: int, max_tokens: int, device: str = "cpu"
) -> list[Batch]:
    """Longest rows first, as many a batch as fit in `max_tokens` with their padding (at least one)."""
    batches: list[Batch] = []
    group: list[MeasuredRow] = []
    for row in sorted(rows, key=lambda row: (-len(row.input_ids), row.id)):
        if group and (len(group) + 1) * len(group[0].input_ids) > max_tokens:
            batches.append(_pad(group, pad_token_id, device))
            group = []
        group.append(row)
    if group:
        batches.append(_pad(group, pad_token_id, device))
    return batches


def _pad(rows: list[MeasuredRow], pad_token_id: int, device: str) -> Batch:
    length = max(len(row.input_ids) for row in rows)

    def stack(sequences: list[list[int]], padding: int) -> Tensor:
        return torch.tensor([ids + [padding] * (length - len(ids)) for ids in sequences], device=device)

    return Batch(
        rows=rows,
        input_ids=stack([row.input_ids for row in rows], pad_token_id),
        attention_mask=stack([[1] * len(row.input_ids) for row in rows], 0),
        labels=stack([row.labels for row in rows], IGNORED),
    )


@torch.inference_mode()
def batch_nll(model: MixtureModel, batch: Batch, gate: Gate) -> list[float]:
    """Each row's NLL under a gate: the mean over its response tokens, in nats, summed in float32.

    The vocabulary projection skips the positions before the batch's first response token.
    """
    kept = batch.input_ids.shape[1] - min(row.response_start for row in batch.rows) + 1
    logits = model(
        gate=gate,
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        logits_to_keep=kept,
    ).logits[:, :-1]
    labels = batch.labels[:, 1 - kept :]
    predicts = labels != IGNORED
    token_nll = F.cross_entropy(logits[predicts].float(), labels[predicts], reduction="none")
    summed = torch.zeros(len(batch.rows), device=token_nll.device)
    summed.index_add_(0, predicts.nonzero()[:, 0], token_nll)
    return (summed / predicts.sum(1)).tolist()

"""Examples as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfmoe_ray.domains.prompt import format_prompt
from selfmoe_ray.errors import UserError
from selfmoe_ray.run.records import Example

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class TokenizedRow:
    """One example as token ids; `labels` equal `input_ids` on the response and are IGNORED on the prompt."""

    id: str
    domain: str
    input_ids: list[int]
    labels: list[int]

    @property
    def response_tokens(self) -> int:
        """How many tokens the loss of this row is summed over."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class TokenizedRows:
    """Rows that fit, and how many did not: cut at the end, or dropped for want of any response token."""

    rows: list[TokenizedRow]
    truncated: int
    dropped: int


def tokenize(example: Example, tokenizer: Any, max_length: int) -> TokenizedRow | None:
    """Prompt and response as ids, with BOS where the tokenizer adds one, and EOS after the response.

    Prompt and response are tokenized apart, as they are at generation. A row longer than
    `max_length` tokens loses the end of its response and its EOS, so that it teaches no early stop;
    None where no response token is left.
    """
    prompt = list(tokenizer(format_prompt(example.instruction, example.input)).input_ids)
    response = list(tokenizer(example.output.strip(), add_special_tokens=False).input_ids)
    response = [*response, tokenizer.eos_token_id][: max(0, max_length - len(prompt))]
    if not response:
        return None
    return TokenizedRow(example.id, example.domain, prompt + response, [IGNORED] * len(prompt) + response)


def tokenize_all(examples: Sequence[Example], tokenizer: Any, max_length: int) -> TokenizedRows:
    """Every example that fits. Raises UserError where none does."""
    rows = [tokenize(example, tokenizer, max_length) for example in examples]
    kept = [row for row in rows if row is not None]
    if examples and not kept:
        raise UserError(
            f"training.max_length: {max_length} tokens leave no room for a response in any of the "
            f"{len(rows)} rows of domain {examples[0].domain!r}; raise it"
        )
    # EOS is missing only from rows that were cut.
    truncated = sum(row.input_ids[-1] != tokenizer.eos_token_id for row in kept)
    return TokenizedRows(kept, truncated, len(rows) - len(kept))


def collate(rows: Sequence[TokenizedRow], pad_token_id: int) -> dict[str, Tensor]:
    """Rows padded on the right: input_ids, attention_mask and labels, each [batch, seq]."""
    import torch

    length = max(len(row.input_ids) for row in rows)

    def stack(sequences: list[list[int]], padding: int) -> Tensor:
        return torch.tensor([ids + [padding] * (length - len(ids)) for ids in sequences])

    return {
        "input_ids": stack([row.input_ids for row in rows], pad_token_id),
        "attention_mask": stack([[1] * len(row.input_ids) for row in rows], 0),
        "labels": stack([row.labels for row in rows], IGNORED),
    }

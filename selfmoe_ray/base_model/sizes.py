"""The sizes of a dense decoder, from its config.json alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfmoe_ray.errors import UserError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class DecoderSizes:
    """A Llama-style decoder; sizes as in transformers' configs. tied: one matrix embeds and predicts."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of q, k, v, o, gate, up and down of one layer; fused ones count as their parts."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = ((self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden))
        return (*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden))

    @property
    def embedding_parameters(self) -> int:
        """The embedding, and the vocabulary projection where it is another matrix."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def layer_parameters(self) -> int:
        """The linears of one layer; norms and biases are below a thousandth of them."""
        return sum(width * out for width, out in self.linears)

    @property
    def parameters(self) -> int:
        """All of the base."""
        return self.embedding_parameters + self.layers * self.layer_parameters

    def lora_parameters(self, rank: int) -> int:
        """One expert: A and B on every linear of every layer."""
        return self.layers * rank * sum(width + out for width, out in self.linears)

    def router_parameters(self, experts: int) -> int:
        """A theta a layer."""
        return self.layers * self.hidden * experts


def read_sizes(path: str, trust_remote_code: bool = False) -> DecoderSizes:
    """The shape of the checkpoint directory at `path`. Raises UserError where its config does not tell."""
    from transformers import AutoConfig

    try:
        return sizes_of(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config())
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"base_model: the config.json of {path} does not describe a dense decoder: {error}") from error


def sizes_of(config: Any) -> DecoderSizes:
    """The shape that a transformers config describes; AttributeError where it lacks a size."""
    heads = config.num_attention_heads
    return DecoderSizes(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )

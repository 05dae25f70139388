"""A checkpoint directory as a tokenizer and a model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.base_model.fingerprint import read_json
from selfmoe_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens that vocabularies keep for padding, or that end documents and not turns.
PAD_TOKENS = ["<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>"]


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint directory, with the BOS its family needs and a pad token.

    Whether BOS is put first is the checkpoint's own setting, except that Gemma always gets it: its
    models write garbage without. For padding see `set_pad_token`.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    config = Path(path) / "config.json"
    settings = read_json(config) if config.exists() else {}
    family = str(settings.get("model_type", ""))
    if family.startswith("gemma") and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        tokenizer.add_bos_token = True
    set_pad_token(tokenizer, settings.get("vocab_size"))
    return tokenizer


def set_pad_token(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None) -> None:
    """Give the tokenizer a pad token that is not its EOS, where the vocabulary has one.

    Collators that mask padding by id would otherwise also mask the EOS that ends a response, and the
    model would never learn to stop. In order: the tokenizer's own, a token of `PAD_TOKENS`, the
    unknown token (byte-level and byte-fallback vocabularies never emit it), and EOS at last. vocab_size: ids from
    there on have no embedding, as those of tokens that were added to the tokenizer alone; no such one is taken.
    """
    vocabulary, end = tokenizer.get_vocab(), tokenizer.eos_token
    if vocab_size is not None:
        vocabulary = {token: index for token, index in vocabulary.items() if index < vocab_size}
    if tokenizer.pad_token in vocabulary and tokenizer.pad_token != end:
        return
    choices = [token for token in [*PAD_TOKENS, tokenizer.unk_token] if token in vocabulary and token != end]
    tokenizer.pad_token = choices[0] if choices else end


@contextmanager
def _without_adapter(path: str) -> Iterator[str]:
    """The directory, or a view of it without the adapter that lies beside full weights.

    transformers would put it onto them unasked, but it is no part of the base: engines and the content hash leave it
    out too.
    """
    if not (Path(path) / "adapter_config.json").exists():
        yield path
        return
    with tempfile.TemporaryDirectory() as view:
        for file in Path(path).iterdir():
            if not file.name.startswith("adapter_"):
                (Path(view) / file.name).symlink_to(file.absolute())
        yield view


def attention_of(config: Any) -> str:
    """transformers' attention for a model: its SDPA path leaves Gemma 2's logit soft-capping out, its eager has it."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None else "sdpa"


def load_model(path: str, dtype: str, device: str = "cpu", trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model of a checkpoint directory, in eval mode.

    dtype: "float32" or "bfloat16". trust_remote_code: run Python files of the checkpoint where
    transformers does not know its architecture; without it such a checkpoint is a UserError.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with _without_adapter(path) as folder:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                attn_implementation=attention_of(config),
                trust_remote_code=trust_remote_code,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"base_model: transformers cannot load {path}: {error}\n"
            "(code that comes with a model runs only with trust_remote_code: true)"
        ) from error
    return model.to(device).eval()

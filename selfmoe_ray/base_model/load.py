"""A checkpoint directory as a tokenizer and a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
    family = str(read_json(config).get("model_type", "")) if config.exists() else ""
    if family.startswith("gemma") and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        tokenizer.add_bos_token = True
    set_pad_token(tokenizer)
    return tokenizer


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token that is not its EOS, where the vocabulary has one.

    Collators that mask padding by id would otherwise also mask the EOS that ends a response, and the
    model would never learn to stop. In order: the tokenizer's own, a token of `PAD_TOKENS`, the
    unknown token (byte-level and byte-fallback vocabularies never emit it), and EOS at last.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token != tokenizer.eos_token:
        return
    vocabulary, end = tokenizer.get_vocab(), tokenizer.eos_token
    choices = [token for token in [*PAD_TOKENS, tokenizer.unk_token] if token in vocabulary and token != end]
    tokenizer.pad_token = choices[0] if choices else end


def load_model(path: str, dtype: str, device: str = "cpu", trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model of a checkpoint directory, in eval mode.

    dtype: "float32" or "bfloat16". trust_remote_code: run Python files of the checkpoint where
    transformers does not know its architecture; without it such a checkpoint is a UserError.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        # transformers' SDPA path leaves Gemma 2's logit soft-capping out; only its eager path has it.
        soft_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation="eager" if soft_capped else "sdpa",
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"base_model: transformers cannot load {path}: {error}\n"
            "(code that comes with a model runs only with trust_remote_code: true)"
        ) from error
    return model.to(device).eval()

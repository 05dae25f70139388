"""A base model without its weights: what its small files say, and whether they can be worked with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.base_model.load import attention_of, load_tokenizer
from selfmoe_ray.base_model.resolve import BaseModel
from selfmoe_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Types of rotary embedding whose `factor` is not in max_position_embeddings yet; vLLM reckons the same.
_SCALED_AFTERWARDS = ("linear", "dynamic")
_WHAT_FITS = "give a dense text model in transformers' format, such as Llama, Mistral, Qwen, Gemma or Phi-3"


@dataclass(frozen=True)
class Outline:
    """A base's config, its tokenizer, and its model on the meta device, where weights have shapes and no values."""

    base: BaseModel
    config: Any
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel

    @property
    def architectures(self) -> list[str]:
        """See `architectures`."""
        return architectures(self.config)

    @property
    def embedded_tokens(self) -> int:
        """Token ids from 0 up to this one have an embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def context_length(self) -> int | None:
        """Tokens that the base was made for; None where its config does not tell."""
        return context_length(self.config)


def read_outline(base: BaseModel) -> Outline:
    """Read a base's files but for its weights, in seconds at any size.

    Raises UserError that names the file and field where they cannot be read, are those of another kind of model, or
    have special tokens that training or an engine would fail on.
    """
    config = read_config(base.path, base.trust_remote_code)
    _check_kind(base, config)
    model = _model(base, config)
    outline = Outline(base, config, _tokenizer(base), model)
    _check_tokens(outline)
    return outline


def read_config(path: str, trust_remote_code: bool = False) -> Any:
    """The transformers config of a checkpoint directory. Raises UserError where there is none that can be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _unreadable(path, "config.json", error) from error


def architectures(config: Any) -> list[str]:
    """The names of the architecture in a transformers config; transformers' own of its causal LM where it has none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]])


def context_length(config: Any) -> int | None:
    """Tokens that the model of a transformers config was made for; None where it does not tell."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    scaling = rope.get("factor") if rope.get("rope_type") in _SCALED_AFTERWARDS else None
    return int(longest * (scaling or 1)) if longest else None


def beyond(ids: Sequence[int], outline: Outline) -> list[int]:
    """Those of the token ids that the base has no embedding for."""
    return [each for each in ids if each >= outline.embedded_tokens]


def _unreadable(path: str, file: str, error: Exception) -> UserError:
    # transformers raises whatever a malformed file happens to trip; it may take pages to say so.
    reason = "\n".join(str(error).strip().splitlines()[:4]) or type(error).__name__
    return UserError(
        f"base_model: transformers cannot read {Path(path) / file}: {reason}\n"
        "(code that comes with a model runs only with trust_remote_code: true)"
    )


def _check_kind(base: BaseModel, config: Any) -> None:
    where = f"base_model: {Path(base.path) / 'config.json'}"
    kind = ", ".join(config.architectures or [config.model_type])
    text = config.get_text_config()
    if config.is_encoder_decoder:
        raise UserError(f"{where}: is_encoder_decoder is true ({kind}); {_WHAT_FITS}")
    if text is not config:
        raise UserError(
            f"{where}: {kind} is a text model inside a model of images or sound (text_config), which cannot be "
            "served as a mixture; give the text model's own checkpoint"
        )


def _model(base: BaseModel, config: Any) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    _check_ids(base, config)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, attn_implementation=attention_of(config), trust_remote_code=base.trust_remote_code
            )
    except Exception as error:
        raise _unreadable(base.path, "config.json", error) from error


def _check_ids(base: BaseModel, config: Any) -> None:
    """Ids that torch refuses an embedding for, without saying which file they are from."""
    for field in ("pad_token_id", "eos_token_id", "bos_token_id"):
        found = getattr(config, field, None)
        for each in found if isinstance(found, list) else [found]:
            if each is not None and each >= config.vocab_size:
                raise UserError(
                    f"base_model: {Path(base.path) / 'config.json'}: {field} is {each}, but vocab_size is "
                    f"{config.vocab_size}: there is no embedding for it; set it to the id of a token below "
                    f"{config.vocab_size}{', or to null' if field == 'pad_token_id' else ''}"
                )


def _tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    try:
        tokenizer = load_tokenizer(base.path, base.trust_remote_code)
        text = tokenizer.decode(tokenizer("Name three primes.", add_special_tokens=False)["input_ids"])
    except Exception as error:
        raise _unreadable(base.path, "tokenizer files", error) from error
    if not text.strip():
        raise UserError(
            f"base_model: the tokenizer of {base.path} makes no tokens of a text; its files are missing or empty. "
            "Put tokenizer.json and tokenizer_config.json of the same model there"
        )
    return tokenizer


def _check_tokens(outline: Outline) -> None:
    tokenizer, count = outline.tokenizer, outline.embedded_tokens
    where = f"base_model: {Path(outline.base.path) / 'tokenizer_config.json'}"
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{where}: there is no eos_token; a response ends with it in training, and an answer stops at it. "
            "Name the token of the vocabulary that ends a text, and give its id in config.json as eos_token_id"
        )
    used = {"eos_token": tokenizer.eos_token_id, "pad_token": tokenizer.pad_token_id}
    if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
        used["bos_token"] = tokenizer.bos_token_id
    for field, token in used.items():
        if beyond([token], outline):
            raise UserError(
                f"{where}: {field} is {getattr(tokenizer, field)!r} with id {token}, but the model has {count} "
                f"embeddings; name a token with an id below {count}, or give the model that was resized for it"
            )
    if tokenizer.vocab_size > count:
        raise UserError(
            f"base_model: the tokenizer of {outline.base.path} has {tokenizer.vocab_size} tokens, but the model has "
            f"{count} embeddings; give the tokenizer files of this model"
        )

"""A checkpoint directory as a tokenizer and a model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.base_model.weights import check_numbers, read_json, tensors_of
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
    transformers does not know its architecture; without it such a checkpoint is a UserError, as is one with a
    tensor that is missing, left over, of another shape, or no numbers.
    """
    import torch

    model = _load(path, trust_remote_code, dtype=getattr(torch, dtype))
    check_numbers(model.named_parameters(), f"base_model: {path}")
    return model.to(device).eval()


def check_tensors(path: str, trust_remote_code: bool = False) -> None:
    """Compare a checkpoint's tensors with those that its config asks for, without memory for them.

    vLLM, unlike `load_model`, does not notice where a part of a fused weight is missing. Raises UserError as
    `load_model` does, but for values.
    """
    _load(path, trust_remote_code, device_map="meta")


def _load(path: str, trust_remote_code: bool, **arguments: Any) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with _without_adapter(path) as folder:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                attn_implementation=attention_of(config),
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                # They are in the report then.
                ignore_mismatched_sizes=True,
                **arguments,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"base_model: transformers cannot load {path}: {error}\n"
            "(code that comes with a model runs only with trust_remote_code: true)"
        ) from error
    refuse_misfits(path, report)
    _check_ties(path, model)
    return model


def refuse_misfits(where: str, report: dict[str, Any]) -> None:
    """Raises UserError that names what did not fit, by what transformers reports of a load."""
    shapes = [
        f"{name} has shape {list(found)}, not {list(wanted)}" for name, found, wanted in report["mismatched_keys"]
    ]
    problems = [
        *(f"{name} is missing" for name in sorted(report["missing_keys"])),
        *sorted(shapes),
        *(f"{name} has no place in this architecture" for name in sorted(report["unexpected_keys"])),
        *report["error_msgs"],
    ]
    if problems:
        more = f" (and {len(problems) - 1} more such tensors)" if len(problems) > 1 else ""
        raise UserError(
            f"base_model: {where}: {problems[0]}{more}; its tensors are not those of one whole model of its config"
        )


def _check_ties(path: str, model: PreTrainedModel) -> None:
    """Raises UserError where config.json ties the output to the embedding, and the file has two that differ.

    Transformers takes the two then, vLLM the embedding alone.
    """
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if not model.config.get_text_config().tie_word_embeddings or output is None or output.weight is embedding.weight:
        return
    names = [name for name, each in model.named_parameters() if each is output.weight or each is embedding.weight]
    one, other = tensors_of(Path(path), names) if embedding.weight.is_meta else (embedding.weight, output.weight)
    if not one.equal(other):
        raise UserError(
            f"base_model: {path}: config.json says tie_word_embeddings, but {' and '.join(names)} differ; "
            "one of the two files is wrong"
        )

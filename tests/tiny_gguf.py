"""Tiny checkpoints written as GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_tiny_gguf(
    checkpoint: Path,
    target: Path,
    add_bos: bool = True,
    end_of_turn: int | None = None,
    settings: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    leave_out: str = "",
    quantisation: str = "F32",
    split_max_tensors: int = 0,
) -> Path:
    """Write a tiny checkpoint (see `tiny_models`) and its tokenizer as GGUF.

    settings: further key-values below the architecture's name, None for one that is left out. extra: further tensors.
    leave_out: the GGUF name of a tensor that is not written. quantisation: of the matrices. split_max_tensors: tensors
    of a file at most, in files beside the target.
    """
    import gguf
    from safetensors.numpy import load_file
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(checkpoint)
    arch = {"mistral": "llama", "gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(target, arch, split_max_tensors=split_max_tensors)
    for name, value in (_settings(config) | dict(settings or {})).items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
            add[type(value)](f"{arch}.{name}", value)
    _add_tokenizer(writer, AutoTokenizer.from_pretrained(checkpoint))
    writer.add_add_bos_token(add_bos)
    if end_of_turn is not None:
        writer.add_eot_token_id(end_of_turn)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    kind = gguf.GGMLQuantizationType[quantisation]
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            tensor = _interleave(tensor, config.head_dim)
        if arch.startswith("gemma") and "norm" in name:
            tensor = tensor + 1
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own == leave_out:
            continue
        if quantisation != "F32" and tensor.ndim == 2:
            writer.add_tensor(own, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(own, tensor)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _settings(config: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of these families."""
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    gemma = config.model_type.startswith("gemma")
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": width if gemma or config.model_type == "qwen3" else None,
        "attention.value_length": width if gemma or config.model_type == "qwen3" else None,
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "rope.dimension_count": width if config.model_type in ("llama", "mistral", "phi3") else None,
        "vocab_size": config.vocab_size if config.model_type == "llama" else None,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
    }


def _interleave(weight, head_dim: int):  # type: ignore[no-untyped-def]
    """GGUF's rotary pairs are neighbours in a head; transformers' lie half a head apart."""
    heads = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return heads.swapaxes(1, 2).reshape(weight.shape)


def _add_tokenizer(writer, tokenizer) -> None:  # type: ignore[no-untyped-def]
    import json

    import gguf

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)
    writer.add_chat_template("{{ messages[0]['content'] }}")

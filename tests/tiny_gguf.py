"""A tiny checkpoint written as GGUF."""

from __future__ import annotations

from pathlib import Path


def write_tiny_gguf(checkpoint: Path, target: Path, add_bos: bool = True, end_of_turn: int | None = None) -> Path:
    """Write a tiny Llama checkpoint (see `tiny_models`) and its tokenizer as one float32 GGUF file."""
    import gguf
    from safetensors.numpy import load_file
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(checkpoint)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, AutoTokenizer.from_pretrained(checkpoint))
    writer.add_add_bos_token(add_bos)
    if end_of_turn is not None:
        writer.add_eot_token_id(end_of_turn)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            tensor = _interleave(tensor, config.head_dim)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


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

"""Random-weight checkpoints of every supported family, small enough for tests; seeded, so always the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 320
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    # Far above the usual 0.02, so that logits and gates of random weights differ visibly.
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# 32 is the smallest head that vLLM's CPU attention takes.
HEAD = {"head_dim": 32}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {**HEAD, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", HEAD),
    "gemma2": ("Gemma2Config", {**HEAD, **ALTERNATING, "query_pre_attn_scalar": 32}),
    "gemma3": ("Gemma3TextConfig", {**HEAD, **ALTERNATING, "query_pre_attn_scalar": 32}),
    "phi3": ("Phi3Config", {}),
    "glm": ("GlmConfig", HEAD),
    "stablelm": ("StableLmConfig", {}),
}
CORPUS = [
    "Write a Python function that returns the sum of a list of numbers.",
    "What is the capital of France? The capital of France is Paris.",
    "A train travels 60 miles in 90 minutes; how far does it go in 4 hours?",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with <s> (always put first), </s>, <pad> and <unk> as ids 0 to 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>", "<pad>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        # Named because the tokenizer classes of some families otherwise append one of their own.
        unk_token="<unk>",
        model_max_length=512,
    )


def save_tiny_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a float32 checkpoint and its tokenizer; returns the folder.

    family: a key of `FAMILIES`. Another seed gives other weights of the same shape.
    """
    import torch
    import transformers

    config_name, special = FAMILIES[family]
    config = getattr(transformers, config_name)(**SHAPE, **special)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder

"""A random model whose words are all valid rows: it draws from a small vocabulary and often ends its turn."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

WORDS = [
    "".join(pair) for pair in itertools.product("bdfgklmnprst", ["a", "e", "i", "o", "u", "an", "en", "in", "on", "un"])
]
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>"]
# Together about an eighth of the vocabulary, and so of a turn's tokens.
ENDS = [1, *range(4, 20)]


def save_chatty_model(folder: Path) -> Path:
    """Write a float32 Llama of random weights with a tokenizer of whole words; returns the folder."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=2048,
    ).save_pretrained(folder)  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(folder)
    return folder


def save_domain(folder: Path, name: str) -> str:
    """Write a domain in the model's own words; returns its folder."""
    place = folder / name
    place.mkdir()
    (place / "domain.yaml").write_text(
        f"name: {name}\ncovers: Words.\nrequirements: [Some words.]\nanswer: Say words.\nshape: free\n"
    )
    rows = [
        {
            "instruction": " ".join(WORDS[number : number + 6]),
            "input": "",
            "output": " ".join(WORDS[-number - 5 : -number]),
        }
        for number in range(1, 9)
    ]
    (place / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(place)

"""Bases that a user could bring and that are odd in one way each, made of a tiny one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

CODE = """\
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


class OwnConfig(LlamaConfig):
    model_type = "unheard_of"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def edit_json(path: Path, **values: Any) -> None:
    """Set values of a JSON file; ... removes one."""
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


def edited(origin: Path, folder: Path, config: dict[str, Any] | None = None, **files: dict[str, Any]) -> Path:
    """A base or its copy elsewhere, with values of config.json, and of other JSON files by stem, set or removed."""
    if folder != origin:
        shutil.copytree(origin, folder, dirs_exist_ok=True)
    for stem, values in {"config": config or {}, **files}.items():
        edit_json(folder / f"{stem}.json", **values)
    return folder


def long_base(origin: Path, folder: Path) -> Path:
    """A base whose context has room for the built-in domains' prompts."""
    return edited(origin, folder, {"max_position_embeddings": 8192})


def with_code(origin: Path, folder: Path) -> Path:
    """A base whose config, model and tokenizer are Python files of its own, of an architecture that vLLM has."""
    edited(
        origin,
        folder,
        {
            "model_type": "unheard_of",
            "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
        },
        tokenizer_config={"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}},
    )
    (folder / "own.py").write_text(CODE)
    return folder


def add_token(folder: Path, role: str, text: str) -> None:
    """Add a token to the tokenizer alone, so that the model has no embedding for it, and give it a role."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({role: text})
    tokenizer.save_pretrained(folder)


def with_adapter(origin: Path, folder: Path) -> Path:
    """Full weights beside which an adapter lies that would change them."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(origin), config).save_pretrained(str(folder))
    return edited(origin, folder)


def in_hub_cache(cache: Path, repository: str, commits: dict[str, Callable[[Path], object]], main: str) -> None:
    """A repository as the hub's cache holds it; commits: what writes each commit's files into a folder."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    for commit, write in commits.items():
        (folder / "snapshots" / commit).mkdir(parents=True)
        write(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(main)

"""A GGUF becomes the model that it was written from, in every family; what would be lost is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfmoe_ray.base_model import load_model, resolve
from selfmoe_ray.errors import UserError
from tests.tiny_gguf import write_tiny_gguf

TOKENS = torch.randint(4, 300, (1, 40), generator=torch.Generator().manual_seed(1))
# A head of 32 whose slow pairs Llama 3's rotary embedding divides by 8, the fast ones not at all.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFMOE_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@torch.no_grad()
def logits(path: str) -> torch.Tensor:
    model = load_model(path, "float32")
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    return model(TOKENS).logits


def with_config(checkpoint: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with another config."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def refused(file: Path) -> str:
    with pytest.raises(UserError) as raised:
        resolve(str(file))
    assert str(file.name) in str(raised.value)
    assert not list(Path(os.environ["SELFMOE_RAY_CACHE"]).rglob("*.safetensors"))
    return str(raised.value)


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    # A file tells of no pattern but the usual: every sixth layer attends to all.
    "gemma3": {"layer_types": ["sliding_attention"] * 2},
    "phi3": {"sliding_window": 16},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_as_the_checkpoint_that_it_was_written_from(
    family: str, tmp_path: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    origin = with_config(tiny_model_dir(family), tmp_path / "origin", **FAMILIES[family])
    base = resolve(str(write_tiny_gguf(origin, tmp_path / "tiny.gguf")))
    torch.testing.assert_close(logits(base.path), logits(str(origin)))


@pytest.mark.parametrize(
    ("rope", "settings"),
    [
        (LLAMA3, {}),
        (
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.scaling.finetuned": True},
        ),
        (
            {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128},
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 128,
            },
        ),
    ],
    ids=["llama3", "linear", "yarn"],
)
def test_scaled_rotary_embeddings_stay_scaled(
    rope: dict[str, Any], settings: dict[str, Any], tmp_path: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    origin = with_config(tiny_model_dir(), tmp_path / "origin", rope_parameters=rope)
    extra = {"rope_freqs.weight": llama3_factors()} if rope is LLAMA3 else {}
    base = resolve(str(write_tiny_gguf(origin, tmp_path / "tiny.gguf", settings=settings, extra=extra)))
    torch.testing.assert_close(logits(base.path), logits(str(origin)))
    assert (logits(base.path) - logits(str(tiny_model_dir()))).abs().max() > 1e-3


def llama3_factors() -> np.ndarray:
    """By transformers' own frequencies, scaled and not."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=LLAMA3, max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** (-torch.arange(16) / 16)
    return (plain / scaled).float().numpy()


def test_other_rotary_factors_are_refused(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    factors = {"rope_freqs.weight": np.linspace(1, 8, 16, dtype=np.float32)}
    file = write_tiny_gguf(tiny_model_dir(), tmp_path / "tiny.gguf", extra=factors)
    assert "rope_freqs.weight are not those of Llama 3" in refused(file)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_quantised_files_become_the_values_that_they_stand_for(
    kind: str, tmp_path: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    origin = tiny_model_dir()
    base = resolve(str(write_tiny_gguf(origin, tmp_path / "tiny.gguf", quantisation=kind)))
    exact = dict(load_model(str(origin), "float32").named_parameters())
    levels = {"F16": 2**7, "BF16": 2**7, "Q8_0": 2**7, "Q4_0": 2**3, "Q5_1": 2**4}[kind]
    for name, value in load_model(base.path, "float32").named_parameters():
        step = exact[name].abs().max() / levels
        assert (value - exact[name]).abs().max() <= 1.01 * step, name


def shards(tmp_path: Path, checkpoint: Path) -> list[Path]:
    write_tiny_gguf(checkpoint, tmp_path / "tiny.gguf", split_max_tensors=9)
    found = sorted(tmp_path.glob("tiny-*.gguf"))
    assert [file.name for file in found] == [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    return found


@pytest.mark.parametrize("given", [0, 2])
def test_any_file_of_a_split_gguf_stands_for_all(
    given: int, tmp_path: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    base = resolve(str(shards(tmp_path, tiny_model_dir())[given]))
    whole = resolve(str(write_tiny_gguf(tiny_model_dir(), tmp_path / "whole.gguf")))
    assert base.content_hash == whole.content_hash
    assert not list(Path(base.path).glob("*.gguf"))


def test_a_missing_file_of_a_split_gguf_is_named_before_anything_is_read(
    tmp_path: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    first, second, _ = shards(tmp_path, tiny_model_dir())
    second.unlink()
    assert "one of 3 files of a split GGUF, of which tiny-00002-of-00003.gguf is not in" in refused(first)


def test_a_renamed_file_of_a_split_gguf_is_refused(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    first, second, third = shards(tmp_path, tiny_model_dir())
    shutil.copy(first, tmp_path / "model.gguf")
    assert "is part 1 of 3 of a split GGUF, read as part 1 of 1" in refused(tmp_path / "model.gguf")
    shutil.copy(second, third)
    assert "is part 2 of 3 of a split GGUF, read as part 3 of 3" in refused(third)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"leave_out": "blk.1.attn_k.weight"}, "model.layers.1.self_attn.k_proj.weight is missing"),
    "left over": (
        {"extra": {"blk.0.attn_q.bias": np.ones(64, np.float32)}},
        "blk.0.attn_q.bias has no place in this architecture",
    ),
    "long rope": (
        {"extra": {"rope_factors_long.weight": np.ones(16, np.float32)}},
        "rope_factors_long.weight has no place",
    ),
    "a shape": ({"settings": {"feed_forward_length": 95}}, "mlp.down_proj.weight has shape [64, 96], not [64, 95]"),
    "a setting": ({"settings": {"attention.scale": 0.5}}, "its llama.attention.scale is 0.5, but no conversion reads"),
    "no heads": ({"settings": {"attention.head_count_kv": None}}, "llama.attention.head_count_kv is missing"),
    "experts": ({"settings": {"expert_count": 4}}, "it is itself a mixture of 4 experts"),
    "no number": (
        {"leave_out": "output_norm.weight", "extra": {"output_norm.weight": np.full(64, np.nan, np.float32)}},
        "model.norm.weight holds values that are no finite numbers",
    ),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_what_would_be_lost_is_refused_by_name(
    damage: str, tmp_path: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    arguments, message = REFUSED[damage]
    assert message in refused(write_tiny_gguf(tiny_model_dir(), tmp_path / "tiny.gguf", **arguments))


def test_an_unknown_architecture_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "mpt")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "its architecture is 'mpt'; llama, qwen2, qwen3, gemma2, gemma3, phi3 are converted" in refused(
        tmp_path / "tiny.gguf"
    )


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    file = write_tiny_gguf(tiny_model_dir(), tmp_path / "tiny.gguf")
    os.truncate(file, file.stat().st_size - 1000)
    assert "could not be converted" in refused(file)


def test_a_conversion_by_an_earlier_version_is_not_taken(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    base = resolve(str(write_tiny_gguf(tiny_model_dir(), tmp_path / "tiny.gguf")))
    assert base.path.endswith("-v2")

"""A base is one whole model in numbers, whichever library reads it; anything else is refused by name."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfmoe_ray.base_model import check_tensors, check_values, load_model, resolve
from selfmoe_ray.errors import UserError

UP = "model.layers.1.mlp.up_proj.weight"
Change = Callable[[dict[str, torch.Tensor]], Any]


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> Path:
    return Path(shutil.copytree(tiny_model_dir(), tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> Path:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_model_dir()).save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    return tmp_path / "model"


def edit(file: Path, change: Change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError, match="base_model: ") as raised:
        resolve(str(folder))
    return str(raised.value)


def test_a_missing_file_of_an_index_is_named(sharded: Path) -> None:
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    assert f"of which {lost.name} is not there" in refusal(sharded)


def test_a_file_without_a_tensor_of_its_index_is_named(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    edit(sharded / index[UP], lambda tensors: tensors.pop(UP))
    assert f"says that {UP} is in {index[UP]}, where it is not" in refusal(sharded)


def test_a_tensor_in_two_files_of_an_index_is_named(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    other = next(file for file in index.values() if file != index[UP])
    edit(sharded / other, lambda tensors: tensors.update({UP: torch.zeros(2)}))
    assert f"{other} has {UP}, which model.safetensors.index.json has in {index[UP]}" in refusal(sharded)


def test_a_tensor_that_an_index_does_not_know_is_named(sharded: Path) -> None:
    edit(next(sharded.glob("*.safetensors")), lambda tensors: tensors.update(extra=torch.zeros(2)))
    assert "has extra, which model.safetensors.index.json does not know" in refusal(sharded)


def test_two_sets_of_weights_are_refused(sharded: Path, tiny_model_dir: Callable[..., Path]) -> None:
    shutil.copy(tiny_model_dir(seed=1) / "model.safetensors", sharded)
    assert "has model.safetensors beside model-00001-of" in refusal(sharded)


def test_an_adapter_beside_the_weights_is_not_read(folder: Path) -> None:
    before = resolve(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    save_file({"a": torch.zeros(2)}, folder / "adapter_model.safetensors")
    assert resolve(str(folder)) == before


def test_a_second_copy_in_a_makers_own_format_is_let_be(folder: Path) -> None:
    before = resolve(str(folder))
    save_file({"a": torch.zeros(2)}, folder / "consolidated.safetensors")
    assert resolve(str(folder)) == before


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8"), (torch.int32, "I32")]
)
def test_packed_and_scaled_tensors_are_named(folder: Path, dtype: torch.dtype, name: str) -> None:
    edit(folder / "model.safetensors", lambda tensors: tensors.update({UP: (tensors[UP] * 9).to(dtype)}))
    assert f"{UP} is {name}, not one of" in refusal(folder)


def test_a_quantised_checkpoint_is_refused(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "config.json: quantization_config has 'gptq'" in refusal(folder)


MISFITS: dict[str, tuple[Change, str]] = {
    "missing": (lambda tensors: tensors.pop(UP), f"{UP} is missing"),
    # vLLM counts a fused weight as loaded where one of its parts is.
    "a part": (
        lambda tensors: tensors.pop("model.layers.0.self_attn.k_proj.weight"),
        "model.layers.0.self_attn.k_proj.weight is missing",
    ),
    "untied": (lambda tensors: tensors.pop("lm_head.weight"), "lm_head.weight is missing"),
    "left over": (lambda tensors: tensors.update(extra=torch.zeros(2)), "extra has no place in this architecture"),
    "a layer more": (
        lambda tensors: tensors.update({UP.replace("1", "2"): torch.zeros(2)}),
        "model.layers.2.mlp.up_proj.weight has no place",
    ),
    "a shape": (
        lambda tensors: tensors.update({UP: tensors[UP][:-1].contiguous()}),
        rf"{UP} has shape \[95, 64\], not \[96, 64\]",
    ),
}


@pytest.mark.parametrize("damage", MISFITS)
@pytest.mark.parametrize("load", [check_tensors, lambda path: load_model(path, "float32")], ids=["check", "load"])
def test_tensors_that_are_not_those_of_the_config_are_named(
    damage: str, load: Callable[[str], Any], folder: Path
) -> None:
    load(str(folder))
    change, message = MISFITS[damage]
    edit(folder / "model.safetensors", change)
    with pytest.raises(UserError, match=f"base_model: {folder}: {message}"):
        load(str(folder))


@pytest.mark.parametrize("load", [check_tensors, lambda path: load_model(path, "float32")], ids=["check", "load"])
def test_an_output_that_is_tied_by_the_config_alone_is_named(load: Callable[[str], Any], folder: Path) -> None:
    configure(folder, tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"tie_word_embeddings, but .*embed_tokens.weight and lm_head.weight differ"):
        load(str(folder))
    file = folder / "model.safetensors"
    edit(file, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    load(str(folder))
    edit(file, lambda tensors: tensors.pop("lm_head.weight"))
    load(str(folder))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_named(folder: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][3, 5] = value

    check_values(folder)
    edit(folder / "model.safetensors", spoil)
    with pytest.raises(UserError, match=f"{UP} holds values that are no finite numbers"):
        check_values(folder)
    with pytest.raises(UserError, match=f"{UP} holds values that are no finite numbers"):
        load_model(str(folder), "bfloat16")

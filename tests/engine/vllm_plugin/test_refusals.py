"""Checkpoints and settings that cannot be served: each is refused with one clear message."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfmoe_ray.errors import UserError

pytestmark = [pytest.mark.serving, pytest.mark.timeout(300)]


def engine_config(folder: Path, **settings: Any) -> Any:
    """What every start of an engine makes first."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(str(folder), dtype="float32", max_model_len=256, **settings).create_engine_config()


def _missing_expert(folder: Path) -> str:
    shutil.rmtree(folder / "experts" / "math")
    return "experts/math/adapter_model.safetensors: missing"


def _damaged_expert(folder: Path) -> str:
    (folder / "experts" / "math" / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    return "experts/math/adapter_model.safetensors: damaged"


def _wrong_shape(folder: Path) -> str:
    path = folder / "experts" / "math" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("down_proj.lora_A.weight"))
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, path)
    return r"down_proj.lora_A.weight has shape \[4, 95\], but r is 4"


def _other_router(folder: Path) -> str:
    save_file({"theta.0.weight": torch.zeros(3, 64)}, folder / "router.safetensors")
    return "router.safetensors: this base needs 2 matrices"


def _edit(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["mixse"] |= values
    (folder / "config.json").write_text(json.dumps(config))


def _base_gone(folder: Path) -> str:
    _edit(folder, base_model=str(folder / "nowhere"))
    return "nowhere"


def _other_base(folder: Path) -> str:
    _edit(folder, base_hash="0123456789abcdef")
    return "0123456789abcdef"


def _router_of_another_base(folder: Path) -> str:
    path = folder / "router.safetensors"
    save_file(load_file(path), path, metadata={"base_model": "other", "base_hash": "f" * 16})
    return "router.safetensors: made for base model 'other'"


def _other_alpha(folder: Path) -> str:
    _edit(folder, alphas=[16.0, 16.0, 16.0])
    return "the mixture's config.json has 8 and 16 for 'coding'"


def _half_a_fused_weight(folder: Path) -> str:
    """vLLM itself takes qkv_proj for loaded as soon as it has one of its parts."""
    base = shutil.copytree(json.loads((folder / "config.json").read_text())["mixse"]["base_model"], folder / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    _edit(folder, base_model=str(base), base_hash="")
    return "model.layers.1.self_attn.k_proj.weight is missing"


def _newer_format(folder: Path) -> str:
    _edit(folder, format=2)
    return "mixse.format is 2, this version of selfmoe_ray reads up to 1"


def _reserved_name(folder: Path) -> str:
    (folder / "experts" / "math").rename(folder / "experts" / "top1")
    _edit(folder, experts=["knowledge", "top1", "coding"])
    return "no expert can be called 'top1'"


@pytest.mark.parametrize(
    "damage",
    [
        _missing_expert,
        _damaged_expert,
        _wrong_shape,
        _other_router,
        _router_of_another_base,
        _other_alpha,
        _half_a_fused_weight,
        _base_gone,
        _other_base,
        _reserved_name,
        _newer_format,
    ],
)
def test_wrong_checkpoint_fails_before_anything_is_loaded(
    mixse_dir: Callable[..., Path], damage: Callable[[Path], str]
) -> None:
    folder = mixse_dir("llama")
    engine_config(folder)
    message = damage(folder)
    with pytest.raises(UserError, match=message):
        engine_config(folder)


def test_what_cannot_be_served_is_refused_with_the_reason(
    mixse_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mixse_dir("llama")
    with pytest.raises(UserError, match="pipeline_parallel_size > 1: the router's logits"):
        engine_config(folder, pipeline_parallel_size=2)
    with pytest.raises(UserError, match="enable_lora"):
        engine_config(folder, enable_lora=True)


@pytest.fixture
def untested_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from selfmoe_ray.engine.vllm_plugin import config

    monkeypatch.setattr("vllm.__version__", "0.34.1")
    config.problem.cache_clear()
    yield
    config.problem.cache_clear()


@pytest.mark.usefixtures("untested_vllm")
def test_an_untested_version_is_tried_with_a_warning(
    mixse_dir: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert engine_config(mixse_dir("llama")).model_config.hf_config.mixse_base
    assert "vLLM 0.34.1 is installed, but mixtures were tested with 0.32.x only" in caplog.text


@pytest.mark.usefixtures("untested_vllm")
def test_an_untested_version_that_differs_where_it_matters_is_refused_by_name(
    mixse_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("vllm.v1.engine.output_processor.OutputProcessor.add_request")
    with pytest.raises(UserError, match=r"vLLM 0\.34\.1 (?s:.*)OutputProcessor\.add_request .* does not fit"):
        engine_config(mixse_dir("llama"))


def test_a_moved_base_can_be_named(mixse_dir: Callable[..., Path], tiny_model_dir: Callable[..., Path]) -> None:
    folder = mixse_dir("llama")
    _edit(folder, base_model="somewhere/else")
    config = engine_config(folder, hf_overrides={"mixse_base": str(tiny_model_dir("llama"))})
    assert config.model_config.hf_config.mixse_base == str(tiny_model_dir("llama"))
    with pytest.raises(UserError, match="hash"):
        engine_config(folder, hf_overrides={"mixse_base": str(tiny_model_dir("llama", seed=1))})


def test_llm_raises_the_message_itself(mixse_dir: Callable[..., Path]) -> None:
    from vllm import LLM

    folder = mixse_dir("llama")
    message = _missing_expert(folder)
    with pytest.raises(UserError, match=message):
        LLM(str(folder))


def test_the_servers_last_words_are_the_message(mixse_dir: Callable[..., Path]) -> None:
    folder = mixse_dir("llama")
    message = _base_gone(folder)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ran.returncode != 0
    end = ran.stderr.rpartition("UserError: ")[2]
    assert message in end and "Traceback" not in end

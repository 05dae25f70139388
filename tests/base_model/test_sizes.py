"""Sizes read from a config against transformers' own models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from selfmoe_ray.base_model.sizes import DecoderSizes, read_sizes
from selfmoe_ray.errors import UserError


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3", "phi3"])
def test_a_config_tells_the_parameters(family: str, tiny_model_dir: Callable[..., Path]) -> None:
    from safetensors import safe_open

    folder = tiny_model_dir(family)
    with safe_open(folder / "model.safetensors", "numpy") as file:
        matrices = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    counted = sum(shape[0] * shape[1] for shape in matrices if len(shape) == 2)
    assert read_sizes(str(folder)).parameters == counted


def test_a_70b_model() -> None:
    llama = DecoderSizes(80, 8192, 28672, 64, 8, 128, 128256, tied=False)
    assert llama.parameters == pytest.approx(70.55e9, rel=1e-3)
    # r * (in + out) over the seven linears of 80 layers, as PEFT counts them.
    assert llama.lora_parameters(8) == 103_546_880


def test_a_config_without_sizes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="does not describe a dense decoder"):
        read_sizes(str(tmp_path))

"""Mixtures over tiny random-weight models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfmoe_ray.config import MixtureConfig
from selfmoe_ray.mixture.model import MixtureModel, attach
from selfmoe_ray.mixture.spec import MixtureSpec

EXPERTS = ["knowledge", "math", "coding"]


def randomise(model: MixtureModel, seed: int = 0) -> None:
    """Give every expert a visible effect (B starts at zero)."""
    generator = torch.Generator().manual_seed(seed)
    for index in range(len(model.spec.experts)):
        for parameter in model.expert_parameters(index):
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture
def load_base(tiny_model_dir: Callable[..., Path]) -> Callable[..., Any]:
    from transformers import AutoModelForCausalLM

    def load(family: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_model_dir(family), dtype=dtype).eval()

    return load


@pytest.fixture
def make_mixture(load_base: Callable[..., Any]) -> Callable[..., MixtureModel]:
    def make(family: str = "llama", dtype: torch.dtype = torch.float32, **settings: Any) -> MixtureModel:
        config = MixtureConfig.model_validate({"rank": 4, "alpha": 8, **settings})
        model = attach(load_base(family, dtype), MixtureSpec.uniform(EXPERTS, config))
        randomise(model)
        return model

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids [3, 17]."""
    return torch.randint(4, 300, (3, 17), generator=torch.Generator().manual_seed(1))

"""A tiny mixture whose experts and router do something, and a few rows to measure it on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfmoe_ray.mixture.model import MixtureModel, attach
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.training.dataset import IGNORED, TokenizedRow

EXPERTS = ("math", "coding", "knowledge")


@pytest.fixture(scope="module")
def mixture(tiny_model_dir: Callable[..., Path]) -> MixtureModel:
    spec = MixtureSpec(experts=EXPERTS, ranks=(2, 2, 2), alphas=(4.0, 4.0, 4.0))
    model = attach(AutoModelForCausalLM.from_pretrained(tiny_model_dir(), dtype=torch.float32), spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for expert in range(len(EXPERTS)):
            for parameter in model.expert_parameters(expert):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.train_only([])
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Callable[..., Path]):
    return AutoTokenizer.from_pretrained(tiny_model_dir())


@pytest.fixture(scope="module")
def rows() -> list[TokenizedRow]:
    """Rows of unequal lengths, four a domain."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for index in range(12):
        length, prompt = 9 + 5 * index, 3 + 2 * index
        ids = torch.randint(4, 320, (length,), generator=generator).tolist()
        made.append(
            TokenizedRow(
                id=f"row/{index}",
                domain=EXPERTS[index % 3],
                input_ids=ids,
                labels=[IGNORED] * prompt + ids[prompt:],
            )
        )
    return made

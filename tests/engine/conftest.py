"""Mixtures over tiny random-weight models as directories that vLLM loads, and what its engines run in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfmoe_ray.base_model import load_model, resolve
from selfmoe_ray.config import RouterConfig
from selfmoe_ray.mixture.checkpoint import save_mixse
from selfmoe_ray.mixture.model import attach
from selfmoe_ray.mixture.spec import MixtureSpec


@pytest.fixture
def cpu_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment for small engines that share the machine's cores."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")


@pytest.fixture(scope="session")
def mixse_dir(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`mixse_dir("llama", k=1, router={...})`: a saved mixture of three experts of unequal rank."""

    def make(
        family: str = "llama",
        k: int = 1,
        router: dict[str, Any] | None = None,
        ranks: tuple[int, int, int] = (8, 4, 8),
    ) -> Path:
        base = resolve(str(tiny_model_dir(family)))
        spec = MixtureSpec(
            experts=("knowledge", "math", "coding"),
            ranks=ranks,
            alphas=(16.0, 16.0, 8.0),
            num_experts_per_tok=k,
            router=RouterConfig.model_validate(router or {}),
            base_model=base.value,
            base_hash=base.content_hash,
        )
        model = attach(load_model(base.path, "float32"), spec)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for index, rank in enumerate(spec.ranks):
                for linear in model.linears.values():
                    b = linear.lora(index)[1]
                    b[:, :rank] = torch.randn(b.shape[0], rank, generator=generator) * 0.05
            for theta in model.router_parameters():
                theta.mul_(10)
        folder = tmp_path_factory.mktemp(f"mixse-{family}")
        save_mixse(model, folder, base)
        return folder

    return make

"""A tiny mixture whose experts and router do something, and a few rows to measure it on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfmoe_ray.base_model import resolve
from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.mixture.checkpoint import save_mixse, save_router
from selfmoe_ray.mixture.model import MixtureModel, attach
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.run.records import Example, Seed
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.training.dataset import IGNORED, TokenizedRow

EXPERTS = ("math", "coding", "knowledge")
RUN_DOMAINS = ["math", "coding"]


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


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> RunConfig:
    return run_config(tmp_path, tiny_model_dir())


def run_config(root: Path, base_model: Path) -> RunConfig:
    return parse_config({
        "root": str(root),
        "base_model": str(base_model),
        "domains": RUN_DOMAINS,
        "training": {"dtype": "float32", "max_length": 256},
        "measure": {"held_out_fraction": 0.3, "max_rows_per_domain": 3, "answer_tokens": 8},
    })  # fmt: skip


@pytest.fixture
def run_dir(config: RunConfig) -> RunDir:
    return write_run(config)


def write_run(config: RunConfig) -> RunDir:
    """A run up to its mixture, whose experts and router are random; the router was fitted before."""
    run_dir = RunDir(config.root, config.run_name)
    for domain in RUN_DOMAINS:
        examples = [
            Example(f"{domain}/000/0000/{row:04d}", domain, f"Task {row}", "", "Paris is far, " * (row + 1))
            for row in range(10)
        ]
        seeds = [Seed(f"Seed {row}", "with input", f"answer {row}") for row in range(5)]
        run_dir.write_examples(domain, examples, [])
        run_dir.write_seeds(domain, used=seeds[:3], held_out=seeds[3:])
        run_dir.write_manifest(run_dir.data(domain), {}, {}, {"examples": 10}, 1.0)
    base = resolve(config.base_model)
    spec = MixtureSpec.uniform(RUN_DOMAINS, config.mixture, base.value, base.content_hash)
    model = attach(AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32), spec)
    generator = torch.Generator().manual_seed(0)
    with run_dir.storage.local_folder_to_write(run_dir.ROUTER) as folder:
        save_router(model, folder / "fitted")
    with torch.no_grad():
        for parameter in [
            *model.expert_parameters(0),
            *model.expert_parameters(1),
            *model.router_parameters(),
        ]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    with run_dir.storage.local_folder_to_write(run_dir.MIXSE) as folder:
        save_mixse(model, folder, base)
    run_dir.write_manifest(run_dir.MIXSE, {}, {}, {}, 1.0)
    return run_dir

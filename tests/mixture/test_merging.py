"""TIES and DARE of adapters: their definition on plain tensors, and the directory that holds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfmoe_ray.base_model import load_model, resolve
from selfmoe_ray.config import MixtureConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.adapter import adapter_key
from selfmoe_ray.mixture.checkpoint import load_mixse, read_spec, save_mixse
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.merging import MergeConfig, factorise, merge, merge_adapters, merge_mixture
from selfmoe_ray.mixture.model import MixtureModel, attach
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.mixture.systems import MERGES


@pytest.fixture(scope="module")
def model(tiny_model_dir: Callable[..., Path]) -> MixtureModel:
    base = resolve(str(tiny_model_dir()))
    spec = MixtureSpec.uniform(["math", "coding"], MixtureConfig(rank=4), base.value, base.content_hash)
    model = attach(load_model(base.path, "float32"), spec)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for expert in range(2):
            for parameter in model.expert_parameters(expert):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_ties_drops_the_small_and_averages_those_of_the_larger_sign() -> None:
    deltas = [torch.tensor([[4.0, -3.0, 0.1, 0.2]]), torch.tensor([[-1.0, -5.0, 0.3, 2.0]])]
    # Kept: 4, -3 and -5, 2.
    assert merge(deltas, "ties", MergeConfig(density=0.5)).tolist() == [[4.0, -4.0, 0.0, 2.0]]


def test_dare_keeps_the_mean_of_the_experts_on_average() -> None:
    deltas = [torch.full((200, 200), 1.0), torch.full((200, 200), 3.0)]
    torch.manual_seed(0)
    merged = merge(deltas, "dare", MergeConfig(density=0.25))
    assert merged.mean().item() == pytest.approx(2.0, abs=0.05)
    assert (merged == 0).float().mean().item() == pytest.approx(0.75**2, abs=0.02)
    torch.testing.assert_close(merge(deltas, "dare", MergeConfig(density=1.0)), deltas[0] * 2)


def test_weights_are_one_an_expert() -> None:
    deltas = [torch.ones(2, 2), torch.ones(2, 2)]
    assert merge(deltas, "dare", MergeConfig(density=1, weights=(0.5, 2.0))).tolist() == [[2.5, 2.5]] * 2
    with pytest.raises(UserError, match="3 given, but there are 2 experts"):
        merge(deltas, "ties", MergeConfig(weights=(1.0, 1.0, 1.0)))


def test_factors_give_a_matrix_of_their_rank_back_and_fill_up_with_zeros() -> None:
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(30, 4, generator=generator) @ torch.randn(4, 40, generator=generator)
    for rank in (4, 35):
        a, b = factorise(delta, rank)
        assert a.shape == (rank, 40) and b.shape == (30, rank)
        torch.testing.assert_close(b @ a, delta, atol=1e-4, rtol=1e-4)


def test_an_expert_that_leaves_a_linear_alone_counts_as_zero() -> None:
    a, b = torch.ones(1, 3), torch.ones(2, 1)
    merged = merge_adapters([{"m": (a, b)}, {}], [2.0, 2.0], "dare", MergeConfig(density=1), rank=2)
    product = merged[adapter_key("m", "B")] @ merged[adapter_key("m", "A")]
    torch.testing.assert_close(product, torch.ones(2, 3))


def test_the_merged_directory_is_a_mixture_of_the_merges(model: MixtureModel, tmp_path: Path) -> None:
    base = resolve(model.spec.base_model)
    save_mixse(model, tmp_path / "mixse", base)
    # Of everything kept, DARE's mean is the uniform gate's output.
    merge_mixture(tmp_path / "mixse", tmp_path / "merged", MergeConfig(density=1), base)
    assert read_spec(tmp_path / "merged").experts == MERGES
    merged = load_mixse(tmp_path / "merged")
    tokens = torch.arange(4, 24)[None]
    with torch.no_grad():
        expected = model(input_ids=tokens, gate=Gate.uniform()).logits
        found = merged(input_ids=tokens, gate=Gate.expert(MERGES.index("dare"))).logits
        other = merged(input_ids=tokens, gate=Gate.expert(MERGES.index("ties"))).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert (other - expected).abs().max() > 1e-2
    adapter = tmp_path / "merged" / "experts" / "ties"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8
    assert all(tensor.dtype == torch.float32 for tensor in load_file(adapter / "adapter_model.safetensors").values())


def test_stock_peft_loads_a_merge(model: MixtureModel, tmp_path: Path) -> None:
    from peft import PeftModel

    base = resolve(model.spec.base_model)
    save_mixse(model, tmp_path / "mixse", base)
    merge_mixture(tmp_path / "mixse", tmp_path / "merged", MergeConfig(), base)
    ours = load_mixse(tmp_path / "merged")
    theirs = PeftModel.from_pretrained(load_model(base.path, "float32"), str(tmp_path / "merged/experts/ties"))
    tokens = torch.arange(4, 24)[None]
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(input_ids=tokens, gate=Gate.expert(0)).logits, expected, atol=1e-4, rtol=1e-4)

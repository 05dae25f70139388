from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfmoe_ray.config import MixtureConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.checkpoint import load_expert, load_router, save_expert, save_router
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import MixtureModel, attach
from selfmoe_ray.mixture.parameters import count_parameters
from selfmoe_ray.mixture.spec import MixtureSpec

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
Make = Callable[..., MixtureModel]


@torch.no_grad()
def logits(model: MixtureModel, tokens: torch.Tensor, gate: Gate | None = None) -> torch.Tensor:
    return model(input_ids=tokens, gate=gate).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_saves_and_loads(
    family: str, make_mixture: Make, tokens: torch.Tensor, tmp_path: Path
) -> None:
    model = make_mixture(family)
    parameters = [*model.expert_parameters(1), *model.router_parameters()]
    model.train_only(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    before = logits(model, tokens)
    model(input_ids=tokens, labels=tokens, gate=Gate.router(2)).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
    optimizer.step()
    after = logits(model, tokens)
    assert not torch.allclose(before, after)

    for index, name in enumerate(model.spec.experts):
        save_expert(model, index, tmp_path / name)
    save_router(model, tmp_path)
    again = make_mixture(family)
    for index, name in enumerate(model.spec.experts):
        load_expert(again, index, tmp_path / name)
    load_router(again, tmp_path)
    assert torch.equal(logits(again, tokens), after)


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_gate_is_the_base_exactly(
    family: str, make_mixture: Make, load_base: Callable[..., Any], tokens: torch.Tensor
) -> None:
    with torch.no_grad():
        expected = load_base(family)(input_ids=tokens).logits
    model = make_mixture(family)
    assert torch.equal(logits(model, tokens, Gate.off()), expected)
    assert torch.equal(logits(model, tokens, Gate.rows(torch.zeros(3, 3))), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_hot_gate_is_stock_peft(
    family: str, make_mixture: Make, load_base: Callable[..., Any], tokens: torch.Tensor, tmp_path: Path
) -> None:
    from peft import PeftModel

    model = make_mixture(family)
    save_expert(model, 2, tmp_path)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(load_base(family), tmp_path)(input_ids=tokens).logits
    assert torch.allclose(logits(model, tokens, Gate.expert(2)), expected, atol=1e-4)
    rows = Gate.rows(torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3))
    assert torch.allclose(logits(model, tokens, rows), expected, atol=1e-4)
    assert not torch.allclose(logits(model, tokens, Gate.expert(0)), expected, atol=1e-2)


def test_all_experts_are_the_weighted_sum(make_mixture: Make) -> None:
    model = make_mixture("llama", num_experts_per_tok=3)
    name, linear = next(iter(model.linears.items()))
    x = torch.randn(2, 5, linear.base.in_features)
    model.state.gate = model.default_gate
    model.state.begin({})
    with torch.no_grad():
        gates = torch.softmax(model.spec.router.tau * model.router.logits(0, x), dim=-1)
        expected = linear.base(x)
        for index in range(3):
            a, b = linear.lora(index)
            expected = expected + gates[..., index : index + 1] * (x @ a.T @ b.T) * 2.0
        assert torch.allclose(linear(x), expected, atol=1e-5), name


@pytest.mark.parametrize("scope", ["layer", "shared"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_gates_follow_the_routers_equation(
    scope: str, accumulate: bool, make_mixture: Make, tokens: torch.Tensor
) -> None:
    model = make_mixture("qwen3", router={"scope": scope, "accumulate": accumulate, "tau": 3.0})
    assert len(model.router_parameters()) == (2 if scope == "layer" else 1)
    with torch.no_grad(), model.record_gates() as gates, model.record_router_inputs() as inputs:
        model(input_ids=tokens)
    own = [model.router.logits(layer, hidden) for layer, hidden in enumerate(inputs[0])]
    for layer in range(2):
        scores = torch.stack(own[: layer + 1]).mean(0) if accumulate else own[layer]
        probabilities = torch.softmax(3.0 * scores, dim=-1)
        top = probabilities.max(-1, keepdim=True).values
        assert torch.allclose(gates[0][layer], probabilities * (probabilities == top), atol=1e-6)


@pytest.mark.parametrize("gate", [Gate.router(1), Gate.router(2), Gate.random(), Gate.uniform()])
def test_gates_do_not_depend_on_the_batch(gate: Gate, make_mixture: Make, tokens: torch.Tensor) -> None:
    model = make_mixture()
    with torch.no_grad(), model.record_gates() as recorded:
        model(input_ids=tokens, gate=gate)
        model(input_ids=tokens[1:2, :9], gate=gate)
    assert recorded[0].shape == (2, 3, 17, 3)
    assert torch.allclose(recorded[0][:, 1:2, :9], recorded[1], atol=1e-5)


def test_left_padding_changes_nothing(make_mixture: Make, tokens: torch.Tensor) -> None:
    model = make_mixture()
    padded = torch.cat([torch.full((3, 4), 2), tokens], dim=1)
    mask = (torch.arange(21) >= 4).long().expand(3, 21)
    for gate in (Gate.router(1), Gate.random()):
        with torch.no_grad():
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            shifted = model(input_ids=padded, attention_mask=mask, position_ids=positions, gate=gate).logits
        assert torch.allclose(shifted[:, 4:], logits(model, tokens, gate), atol=1e-4)


@pytest.mark.parametrize("gate", [Gate.off(), Gate.router(1), Gate.random(), Gate.rows(torch.eye(3))])
def test_generate_with_cache_equals_full_passes(gate: Gate, make_mixture: Make, tokens: torch.Tensor) -> None:
    model = make_mixture()
    mask = torch.ones_like(tokens)
    generated = model.generate(
        input_ids=tokens, attention_mask=mask, gate=gate, max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    expected = tokens
    for _ in range(6):
        expected = torch.cat([expected, logits(model, expected, gate)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, expected)


def test_gradient_checkpointing_gives_the_same_gradients(make_mixture: Make, tokens: torch.Tensor) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = make_mixture()
        parameters = [*model.expert_parameters(0), *model.expert_parameters(2), *model.router_parameters()]
        model.train_only(parameters)
        if checkpointing:
            model.base.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model(input_ids=tokens, labels=tokens, gate=Gate.router(2), use_cache=False).loss.backward()
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, again, atol=1e-6)


def test_bfloat16_base_keeps_experts_and_router_in_float32(make_mixture: Make, tokens: torch.Tensor) -> None:
    model = make_mixture("llama", torch.bfloat16)
    assert {parameter.dtype for parameter in model.expert_parameters(0)} == {torch.float32}
    model.train_only([*model.expert_parameters(0), *model.router_parameters()])
    loss = model(input_ids=tokens, labels=tokens, gate=Gate.router(3)).loss
    loss.backward()
    assert torch.isfinite(loss)
    full = make_mixture("llama")
    assert torch.allclose(logits(model, tokens).float(), logits(full, tokens), atol=0.5)


def test_packed_experts_give_the_same_logits(make_mixture: Make, tokens: torch.Tensor) -> None:
    model = make_mixture()
    expected = logits(model, tokens)
    model.train_only(model.router_parameters())
    assert model.linears and all(linear.packed_A is not None for linear in model.linears.values())
    assert torch.equal(logits(model, tokens), expected)


def test_a_row_trains_only_its_own_expert(make_mixture: Make, tokens: torch.Tensor) -> None:
    model = make_mixture()
    everything = [parameter for index in range(3) for parameter in model.expert_parameters(index)]
    model.train_only(everything)
    gate = Gate.rows(torch.tensor([[0.0, 1.0, 0.0]]).expand(3, 3))
    model(input_ids=tokens, labels=tokens, gate=gate).loss.backward()
    for index in range(3):
        touched = any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.expert_parameters(index))
        assert touched == (index == 1)


def test_an_experts_start_depends_on_its_name_only(load_base: Callable[..., Any]) -> None:
    def start(experts: list[str], which: int) -> list[torch.Tensor]:
        model = attach(load_base(), MixtureSpec.uniform(experts, MixtureConfig()), seed=3)
        return [parameter.detach() for parameter in model.expert_parameters(which)]

    for alone, together in zip(start(["math"], 0), start(["coding", "math"], 1), strict=True):
        assert torch.equal(alone, together)


def test_parameter_shares_of_a_7b_model() -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(shape)
        model = attach(base, MixtureSpec.uniform(["a", "b", "c", "d"], MixtureConfig()))
    shares = count_parameters(model)
    assert shares.base == 6_738_415_616
    assert all(count / shares.base < 0.003 for count in shares.experts.values())
    assert 0.009 < shares.added / shares.base < 0.0125
    assert "all 80," in str(shares)


def test_unsupported_families_are_refused_with_the_reason() -> None:
    from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig

    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    spec = MixtureSpec.uniform(["a"], MixtureConfig())
    cases = [
        (GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50), "GPT2LMHeadModel"),
        (MixtralConfig(**small, vocab_size=50, num_local_experts=2), "itself a mixture of experts"),
    ]
    for config, reason in cases:
        with pytest.raises(UserError, match=reason):
            attach(AutoModelForCausalLM.from_config(config), spec)

"""The experts of one vLLM linear layer against the formula, without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from selfmoe_ray.config import RouterConfig
from selfmoe_ray.mixture.gate import top_k
from selfmoe_ray.mixture.spec import MixtureSpec

pytestmark = pytest.mark.serving

HIDDEN, OUTPUTS = 64, {"q": 64, "k": 32, "v": 32}


@pytest.fixture(scope="module")
def _vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """vLLM's layers ask for a config and a process group of one."""
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )

    store = tmp_path_factory.mktemp("store") / "group"
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))):
        init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
        initialize_model_parallel(1, 1)
        yield
        destroy_model_parallel()
        destroy_distributed_environment()


def attach(
    linear: Any, spec: MixtureSpec, theta: Tensor, merge: bool, is_eager: bool
) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    """Random experts on the layer; returns their A and B by expert and part."""
    from selfmoe_ray.engine.vllm_plugin.gates import TokenGates
    from selfmoe_ray.engine.vllm_plugin.method import MixtureLinearMethod
    from selfmoe_ray.engine.vllm_plugin.pass_state import PassState
    from selfmoe_ray.engine.vllm_plugin.recorder import GateRecorder
    from selfmoe_ray.engine.vllm_plugin.stacked import StackedExperts

    n = len(spec.experts)
    state = PassState(spec, TokenGates(spec, 16), GateRecorder(1, 16, n), len(OUTPUTS), torch.float32, is_eager)
    linear.mixse_experts = experts = StackedExperts(linear, list(OUTPUTS), spec)
    linear.quant_method = MixtureLinearMethod(
        linear.quant_method, state, 0, theta, merge=merge and experts.block_diagonal
    )
    adapters = {}
    for expert, rank in enumerate(spec.ranks):
        for part, (name, width) in enumerate(OUTPUTS.items()):
            a, b = torch.randn(rank, HIDDEN) * 0.1, torch.randn(width, rank) * 0.1
            experts.load(linear, expert, part, a, b)
            adapters[expert, name] = a, b
    for module in list(linear.modules()):
        if hasattr(module, "quant_method"):
            module.quant_method.process_weights_after_loading(module)
    return adapters


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "base untouched"])
@pytest.mark.parametrize("rank", [8, 48], ids=["block-diagonal", "by part"])
@pytest.mark.parametrize("is_eager", [True, False], ids=["eager", "compiled"])
@pytest.mark.usefixtures("_vllm")
def test_a_layer_adds_the_gated_experts(rank: int, merge: bool, bias: bool, is_eager: bool) -> None:
    from vllm.model_executor.layers.linear import QKVParallelLinear

    torch.manual_seed(0)
    spec = MixtureSpec(experts=("a", "b", "c"), ranks=(rank, 4, rank), alphas=(16.0, 16.0, 8.0), router=RouterConfig())
    linear = QKVParallelLinear(HIDDEN, 32, 2, 1, bias=bias, params_dtype=torch.float32, prefix="layers.0.qkv_proj")
    torch.nn.init.normal_(linear.weight, std=0.1)
    weight, offset = linear.weight.data.clone(), 0.0
    if bias:
        offset = torch.nn.init.normal_(linear.bias).detach().clone()
    theta, x = torch.randn(3, HIDDEN), torch.randn(7, HIDDEN)
    adapters = attach(linear, spec, theta, merge, is_eager)
    gates = top_k(torch.softmax(x @ theta.t() * spec.router.tau, -1), 1)
    expected = x @ weight.t() + offset
    for expert, scaling in enumerate(spec.scalings):
        pairs = [adapters[expert, name] for name in OUTPUTS]
        delta = torch.cat([x @ a.t() @ b.t() for a, b in pairs], dim=1)
        expected += gates[:, expert, None] * delta * scaling
    with torch.inference_mode():
        torch.testing.assert_close(linear(x)[0], expected, rtol=1e-4, atol=1e-4)

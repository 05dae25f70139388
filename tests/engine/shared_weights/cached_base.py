"""A daemon of vLLM's weight cache and an engine that maps its weights, on a CPU, where vLLM ships them by value.

What only a GPU has is replaced: its number and name, and the check that it is one.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

from selfmoe_ray.engine.shared_weights import LOAD_FORMAT

GATES = ["router", "base", "math", "uniform"]


def pretend_a_gpu() -> None:
    """One device without a number of its own, whose experts are torch's products."""
    from vllm.model_executor.model_loader.weight_cache import daemon, ipc_loader

    from selfmoe_ray.engine.vllm_plugin import models

    models.cpu_kernels = lambda dtype, device: None
    torch.accelerator.current_device_index = lambda: 0  # type: ignore[assignment]
    torch.accelerator.memory_allocated = lambda: 0  # type: ignore[assignment]
    daemon.get_current_device_uuid = ipc_loader.get_current_device_uuid = lambda: "cpu"
    ipc_loader.check_ipc_platform_support = lambda: None


def serve(base: str, socket_dir: str) -> None:
    """Hold a base's weights as they were loaded: a GPU packs none."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.weight_cache.daemon import WeightCacheDaemon
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = EngineArgs(base, dtype="float32", max_model_len=128).create_engine_config()
    daemon = WeightCacheDaemon(config, 0, 0, "", socket_dir)
    init_distributed_environment(1, 0, f"file://{socket_dir}/store", 0, "gloo")
    with set_current_vllm_config(config), set_default_torch_dtype(torch.float32):
        ensure_model_parallel_initialized(1, 1)
        loader = get_model_loader(config.load_config)
        daemon.model = loader.create_model(config, config.model_config)
        loader.load_weights(daemon.model, config.model_config)
    daemon.serve_forever()


def answer(mixse: str, socket_dir: str) -> None:
    """Print the log-probabilities of each gate's tokens, from an engine without a process of its own."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams
    from vllm.model_executor.model_loader import register_model_loader

    from selfmoe_ray.engine.shared_weights import loader, weight_cache

    extra: dict[str, Any] = {}
    if socket_dir:
        # The plugin registers once; after it, what it would on a GPU.
        loader.register()
        register_model_loader(LOAD_FORMAT)(weight_cache.CachedBaseLoader)
        extra = {
            "load_format": LOAD_FORMAT,
            "model_loader_extra_config": {"socket_dir": socket_dir, "state_timeout_s": 60},
        }
    llm = LLM(mixse, dtype="float32", max_model_len=128, enforce_eager=True, **extra)
    params = [
        SamplingParams(temperature=0, max_tokens=16, logprobs=1, extra_args={"mixse_gate": gate}) for gate in GATES
    ]
    outputs = llm.generate([{"prompt_token_ids": [0, 5, *range(20, 60)]}] * len(GATES), params, use_tqdm=False)
    print(
        json.dumps(
            [[max(each.logprob for each in step.values()) for step in output.outputs[0].logprobs] for output in outputs]
        )
    )


if __name__ == "__main__":
    pretend_a_gpu()
    {"serve": serve, "answer": answer}[sys.argv[1]](*sys.argv[2:])

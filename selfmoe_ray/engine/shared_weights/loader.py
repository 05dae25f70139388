"""vLLM's load format `mixse_shared` on CPUs: the base's weights are mapped, the experts and the router are loaded."""

from __future__ import annotations

import functools
import multiprocessing.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import vllm
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.platforms import current_platform

from selfmoe_ray.base_model.fingerprint import content_hash
from selfmoe_ray.engine import patches
from selfmoe_ray.engine.shared_weights import LOAD_FORMAT
from selfmoe_ray.engine.shared_weights.layout import Layout
from selfmoe_ray.engine.shared_weights.store import WeightStore
from selfmoe_ray.engine.vllm_plugin.method import MixtureLinearMethod
from selfmoe_ray.errors import UserError

PATH = "path"
EXPERTS = ".mixse_experts."


@functools.cache
def register() -> None:
    """Make the load format known to vLLM in this process, as its device shares memory."""
    if current_platform.is_cuda_alike():
        from selfmoe_ray.engine.shared_weights.weight_cache import CachedBaseLoader

        register_model_loader(LOAD_FORMAT)(CachedBaseLoader)
    else:
        register_model_loader(LOAD_FORMAT)(SharedWeightsLoader)


class SharedWeightsLoader(DefaultModelLoader):
    """Loads a mixture over base weights that all engines of this user on this node map.

    `model_loader_extra_config={"path": ...}` names the store's directory; /dev/shm is the default.
    Raises UserError where the platform computes in other memory or the model is no mixture.
    """

    def __init__(self, load_config: Any):
        extra = dict(load_config.model_loader_extra_config or {})
        self.root = Path(extra.pop(PATH, f"/dev/shm/mixse-weights-{os.getuid()}"))
        if extra:
            raise UserError(f"model_loader_extra_config: unknown {', '.join(extra)}; {LOAD_FORMAT} knows {PATH}")
        if not current_platform.is_cpu():
            raise UserError(f"load_format {LOAD_FORMAT} shares a CPU's memory; this vLLM computes in a device's own")
        super().__init__(replace(load_config, load_format="auto", model_loader_extra_config={}))

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Map the base's weights, which the first engine loads, and load the mixture's own."""
        mixture: Any = getattr(model, "mixture", None)
        if mixture is None:
            raise UserError(f"{model_config.model}: load_format {LOAD_FORMAT} serves `mixse` directories")
        parameters = base_parameters(model)
        checkpoint = mixture.checkpoint
        key = {
            "base": checkpoint.spec.base_hash or content_hash(checkpoint.base),
            "vllm": vllm.__version__,
            "rank": f"{get_tensor_model_parallel_rank()} of {get_tensor_model_parallel_world_size()}",
        }

        def load(tensors: dict[str, Tensor]) -> None:
            _assign(parameters, tensors)
            super(SharedWeightsLoader, self).load_weights(model, model_config)

        shared = WeightStore(self.root).open(key, Layout.of(parameters), load)
        if not shared.created:
            mixture.load()
        _assign(parameters, shared.tensors)
        _compute_unpacked(model)
        multiprocessing.util.Finalize(None, shared.release, exitpriority=0)


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but the experts', each once."""
    return {name: each for name, each in model.named_parameters() if EXPERTS not in name}


def _assign(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.data = tensors[name]


def _compute_unpacked(model: nn.Module) -> None:
    """Have the base's layers compute from the mapped weights: vLLM would pack each into a private copy."""
    patches.checked(patches.PRODUCT_UNPACKED)
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if method is not None and hasattr(module, "weight") and EXPERTS not in name:
            module.cpu_linear = F.linear
            # The experts of a layer are this engine's own, and packed as ever.
            of_base = method.base if isinstance(method, MixtureLinearMethod) else method
            patches.apply(patches.WEIGHTS_UNPACKED, lambda original, layer: None, on=of_base)

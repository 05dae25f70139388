"""The load format `mixse_shared` on a GPU: the base's weights are mapped from vLLM's own weight cache.

`vllm preload --model <base> --dtype <dtype>` keeps them, one daemon a GPU. A daemon knows no plugin, so it
holds a base and not a mixture; that is what all mixtures over the base share.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from vllm.model_executor.model_loader.weight_cache.ipc_loader import IpcModelLoader
from vllm.model_executor.model_loader.weight_cache.protocol import (
    CacheConfigMismatchError,
    WeightCacheState,
    WeightCacheUnavailableError,
)

from selfmoe_ray.engine import patches
from selfmoe_ray.engine.shared_weights import LOAD_FORMAT
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.mixse_dir import ARCHITECTURE_PREFIX

# A replica with weights of its own where others share them would not fit beside them.
_FIXED = {"mode": "zero_copy", "fallback": False}


class CachedBaseLoader(IpcModelLoader):
    """Loads a mixture over base weights that a daemon of vLLM holds on this GPU.

    `model_loader_extra_config` takes vLLM's keys for `ipc_cache`, but `mode` and `fallback`: `socket_dir`,
    `socket_path`, `connect_timeout_s`, and `state_timeout_s`, for which a daemon that is not there yet is waited for.
    Raises UserError where it does not come, or has other weights.
    """

    def __init__(self, load_config: Any):
        extra = dict(load_config.model_loader_extra_config or {})
        if fixed := sorted(extra.keys() & _FIXED):
            raise UserError(f"model_loader_extra_config: {', '.join(fixed)} cannot be chosen with {LOAD_FORMAT}")
        patches.checked(patches.CACHE_FETCHED)
        patches.checked(patches.CACHE_APPLIED)
        super().__init__(replace(load_config, model_loader_extra_config=extra | _FIXED))

    def get_external_weight_memory(self, vllm_config: Any) -> int:
        """Bytes that the daemon holds, which an engine's share of the GPU does not have to."""
        with _explained(vllm_config.model_config):
            return int(super().get_external_weight_memory(vllm_config))

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
        """The mixture, its base mapped and its experts loaded."""
        with _explained(model_config):
            return super().load_model(vllm_config, model_config, prefix)

    def _fetch_entries(self, model_config: Any) -> WeightCacheState:
        return super()._fetch_entries(_of_base(model_config))

    def _apply_entries(self, model: nn.Module, state: WeightCacheState, device_index: int) -> None:
        super()._apply_entries(model, state, device_index)
        mixture: Any = model.mixture
        mixture.load()


def _of_base(model_config: Any) -> Any:
    """The config by which a daemon knows the mixture's base."""
    if not hasattr(model_config.hf_config, "mixse_base"):
        raise UserError(f"{model_config.model}: load_format {LOAD_FORMAT} serves `mixse` directories")
    base, base.hf_config = copy.copy(model_config), copy.copy(model_config.hf_config)
    base.model = base.hf_config.mixse_base
    base.hf_config.architectures = [
        name.removeprefix(ARCHITECTURE_PREFIX) for name in model_config.hf_config.architectures
    ]
    return base


@contextmanager
def _explained(model_config: Any) -> Iterator[None]:
    try:
        yield
    except (WeightCacheUnavailableError, CacheConfigMismatchError) as error:
        base, dtype = _of_base(model_config).model, str(model_config.dtype).removeprefix("torch.")
        raise UserError(
            f"load_format {LOAD_FORMAT}: {error}; on this GPU, `vllm preload --model {base} --dtype {dtype}` has to run"
        ) from error

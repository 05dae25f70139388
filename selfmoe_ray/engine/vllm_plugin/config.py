"""Checks a mixture before any process or weight is loaded, where vLLM lets a model adjust its config."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

from selfmoe_ray.engine import patches
from selfmoe_ray.engine.vllm_plugin.compatibility import install, is_tested, tested
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.mixse_dir import ARCHITECTURE_PREFIX

logger = logging.getLogger(__name__)

WORKER_EXTENSION = "selfmoe_ray.engine.vllm_plugin.recorder.MixseWorker"


@functools.cache
def problem() -> str | None:
    """Why a mixture may not be served with this vLLM, or None.

    A version that was not tested is told of, and used as long as every change of it fits.
    """
    import vllm

    if is_tested(vllm.__version__):
        return None
    found = f"vLLM {vllm.__version__} is installed, but mixtures were tested with {tested()} only"
    try:
        patches.require_fit("vllm")
    except UserError as error:
        return f"{found}, and this one differs where it matters: {error.args[0].split(', but ')[-1]}\n  {install()}"
    logger.warning("%s. All changes of it fit, so it is tried; if answers look wrong, %s.", found, install())
    return None


def register(bases: list[str]) -> None:
    """Give each Mixse architecture its base's config hook, with `verify` before it."""
    from vllm.model_executor.models.config import VerifyAndUpdateConfig

    hooks = patches.checked(patches.CONFIG_HOOKS)
    for base in bases:
        inner = hooks.get(base, VerifyAndUpdateConfig)
        hooks[f"{ARCHITECTURE_PREFIX}{base}"] = _hook(inner)


def _hook(inner: Any) -> Any:
    class MixseConfig(inner):
        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            verify(vllm_config)
            inner.verify_and_update_config(vllm_config)

    return MixseConfig


def verify(vllm_config: Any) -> None:
    """Resolve the base, compare its hash, check every file's header, refuse what cannot be served.

    Leaves the base's directory in `hf_config.mixse_base`; a value given there before (by vLLM's
    --hf-overrides) says where the base is now. Raises UserError.
    """
    from selfmoe_ray.base_model import check_tensors
    from selfmoe_ray.engine.vllm_plugin.checkpoint import MixseCheckpoint, read_mixse
    from selfmoe_ray.mixture.checkpoint import resolve_base

    model = vllm_config.model_config
    if reason := problem() or _unsupported(vllm_config):
        raise UserError(reason)
    mixse = read_mixse(model.hf_config, model.model)
    base = resolve_base(mixse.spec, getattr(model.hf_config, "mixse_base", None), model.trust_remote_code)
    check_tensors(base.path, model.trust_remote_code)
    model.hf_config.mixse_base = str(base.path)
    text = model.hf_text_config
    MixseCheckpoint(mixse, Path(base.path)).check(text.num_hidden_layers, text.hidden_size)
    vllm_config.parallel_config.worker_extension_cls = WORKER_EXTENSION
    # Shared weights are not merged with the experts': that is another graph, which the key of vLLM's
    # cache of compiled graphs would not tell apart.
    vllm_config.additional_config["mixse_load_format"] = vllm_config.load_config.load_format


def _unsupported(vllm_config: Any) -> str | None:
    """Why this engine cannot serve a mixture, or None."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    reasons = {
        "pipeline_parallel_size > 1: the router's logits are summed over all layers, and vLLM hands only "
        "hidden states from stage to stage; use tensor_parallel_size": parallel.pipeline_parallel_size > 1,
        "enable_dbo: a micro-batch does not know where its tokens are in the batch": parallel.enable_dbo,
        "prefill_context_parallel_size > 1: a rank does not know which of the batch's tokens it has": (
            parallel.prefill_context_parallel_size > 1
        ),
        "enable_lora: a mixture's experts are LoRA adapters already": vllm_config.lora_config is not None,
        "quantization: experts attach to plain linear layers": model.quantization is not None,
        "worker_extension_cls: a mixture's own extension takes its place": (
            parallel.worker_extension_cls not in ("", WORKER_EXTENSION)
        ),
        "a multimodal model: experts attach to text decoders": model.is_multimodal_model,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    return f"{model.model}: MiXSE cannot be served with {found[0]}" if found else None

"""A request's gate on its way from the API to the token rows of a batch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from selfmoe_ray.engine.kernels import top_p
from selfmoe_ray.engine.plan import FINAL_ONLY_KEY
from selfmoe_ray.engine.vllm_plugin import seeds, traced
from selfmoe_ray.engine.vllm_plugin.gates import RowGate, parse_gate
from selfmoe_ray.engine.vllm_plugin.trace import requested_level
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.spec import MixtureSpec

GATE_KEY = "mixse_gate"


def requested_gate(sampling_params: Any, spec: MixtureSpec) -> RowGate | None:
    """The gate that a request asks for; None for the default. Raises UserError for an unknown one."""
    value = (getattr(sampling_params, "extra_args", None) or {}).get(GATE_KEY)
    if value is None:
        return None
    gate = parse_gate(value, spec)
    return None if gate == parse_gate("router", spec) else gate


def install() -> None:
    """In every process that takes requests: check the gate and salt the request's prefix cache with it.

    Requests of generation, whatever their model, are answered once.
    """
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import OutputProcessor

    _wrap(InputProcessor, "process_inputs", _salt)
    _wrap(OutputProcessor, "add_request", traced.remember)


def install_in_worker(vllm_config: Any) -> None:
    """In a worker with the V1 model runner: fill the gate buffers before each forward pass; sample fast on a CPU.

    The V2 runner asks the model itself (`MixseModelState`).
    """
    if not vllm_config.use_v2_model_runner:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        _wrap(GPUModelRunner, "_prepare_inputs", _write_gates)
        if vllm_config.device_config.device_type == "cpu":
            _wrap(GPUModelRunner, "sample_tokens", seeds.sample_tokens)
            top_p.install()


def _wrap(cls: type, method: str, wrapper: Any) -> None:
    original = getattr(cls, method)
    if getattr(original, "mixse", False):
        return

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(original, self, *args, **kwargs)

    wrapped.mixse = True  # type: ignore[attr-defined]
    setattr(cls, method, wrapped)


def _salt(process_inputs: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    request = process_inputs(self, *args, **kwargs)
    set_output_kind(request.sampling_params)
    section = getattr(self.model_config.hf_config, "mixse", None)
    if section is None:
        return request
    from vllm.exceptions import VLLMValidationError

    try:
        gate = requested_gate(request.sampling_params, MixtureSpec.model_validate(section))
    except UserError as error:
        raise VLLMValidationError(str(error), parameter=GATE_KEY) from None
    traced.prepare(request.sampling_params)
    if gate is not None:
        request.cache_salt = f"{request.cache_salt or ''}|{gate}"
    return request


def set_output_kind(sampling_params: Any) -> None:
    """Have a request that asks for it (`FINAL_ONLY_KEY`) answered once, at its end."""
    if (getattr(sampling_params, "extra_args", None) or {}).get(FINAL_ONLY_KEY):
        from vllm.sampling_params import RequestOutputKind

        sampling_params.output_kind = RequestOutputKind.FINAL_ONLY


def _write_gates(prepare_inputs: Any, self: Any, scheduler_output: Any, tokens: np.ndarray) -> Any:
    prepared = prepare_inputs(self, scheduler_output, tokens)
    mixture = getattr(self.get_model(), "mixture", None)
    if mixture is not None:
        params = [self.requests[name].sampling_params for name in self.input_batch.req_ids]
        positions = self.input_batch.num_computed_tokens_cpu[: len(params)]
        mixture.gates.write([requested_gate(each, mixture.spec) for each in params], positions, tokens)
        levels = [requested_level(each) for each in params]
        mixture.trace.begin_step(self.input_batch.req_ids, levels, positions, tokens)
    return prepared

"""A request's gate and its trace on their way from the API to the token rows of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from selfmoe_ray.engine import patches
from selfmoe_ray.engine.kernels import top_p
from selfmoe_ray.engine.plan import FINAL_ONLY_KEY
from selfmoe_ray.engine.routing_log import LOG, TracedRequest
from selfmoe_ray.engine.vllm_plugin.gates import RowGate, parse_gate
from selfmoe_ray.engine.vllm_plugin.recorder import ROUTING_KEY, requested_level
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.gate import GATE_KEY, ROUTER
from selfmoe_ray.mixture.mixse_dir import parse_section
from selfmoe_ray.mixture.spec import MixtureSpec


def requested_gate(sampling_params: Any, spec: MixtureSpec) -> RowGate | None:
    """The gate that a request asks for; None for the default. Raises UserError for an unknown one."""
    value = (getattr(sampling_params, "extra_args", None) or {}).get(GATE_KEY)
    if value is None:
        return None
    gate = parse_gate(value, spec)
    return None if gate == parse_gate(ROUTER, spec) else gate


def install() -> None:
    """In every process that takes requests: check the gate and salt the request's prefix cache with it.

    Requests of generation, whatever their model, are answered once.
    """
    patches.apply(patches.REQUEST_TAKEN, _take)
    patches.apply(patches.REQUEST_NOTED, _note)


def install_in_worker(vllm_config: Any) -> None:
    """In a worker with the V1 model runner: fill the gate buffers before each forward pass; sample fast on a CPU.

    The V2 runner asks the model itself (`MixseModelState`).
    """
    if not vllm_config.use_v2_model_runner:
        patches.apply(patches.GATES_WRITTEN, _write_gates)
        if vllm_config.device_config.device_type == "cpu":
            patches.apply(patches.SEEDS_KEPT, _keep_generators)
            top_p.install()


def _take(process_inputs: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """`InputProcessor.process_inputs`. Raises VLLMValidationError, which the API answers with status 400, for an
    unknown gate or level."""
    request = process_inputs(self, *args, **kwargs)
    set_output_kind(request.sampling_params)
    section = getattr(self.model_config.hf_config, "mixse", None)
    if section is None:
        return request
    from vllm.exceptions import VLLMValidationError

    key = GATE_KEY
    try:
        gate = requested_gate(request.sampling_params, parse_section(section, Path(self.model_config.model)))
        key = ROUTING_KEY
        level = requested_level(request.sampling_params)
    except UserError as error:
        raise VLLMValidationError(str(error), parameter=key) from None
    if level:
        # Tokens from the prefix cache would have no gates.
        request.sampling_params.skip_reading_prefix_cache = True
    if gate is not None:
        request.cache_salt = f"{request.cache_salt or ''}|{gate}"
    return request


def _note(add_request: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    """`OutputProcessor.add_request`; a traced request is noted in the log."""
    add_request(self, request, *args, **kwargs)
    level = requested_level(request.sampling_params)
    if level:
        state = self.request_states[request.request_id]
        LOG.remember(
            state.external_req_id,
            TracedRequest(
                name=request.request_id,
                index=state.request_index,
                level=level,
                prompt_ids=request.prompt_token_ids or [],
                detokenizer=state.detokenizer,
                running=self.request_states,
            ),
        )


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
        mixture.recorder.begin_step(self.input_batch.req_ids, levels, positions, tokens)
    return prepared


def _keep_generators(sample_tokens: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """`GPUModelRunner.sample_tokens`; rows whose token is thrown away draw from no generator of their own."""
    generators = self.input_batch.generators
    discarded = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0].tolist()
    kept = {row: generators.pop(row) for row in discarded if row in generators}
    try:
        return sample_tokens(self, *args, **kwargs)
    finally:
        generators.update(kept)

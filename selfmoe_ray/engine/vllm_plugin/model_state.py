"""Fills the gate buffers under vLLM's V2 model runner, which lets a model keep state for its requests."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from selfmoe_ray.engine.vllm_plugin.gates import RowGate
from selfmoe_ray.engine.vllm_plugin.recorder import requested_level
from selfmoe_ray.engine.vllm_plugin.requests import requested_gate


class MixseModelState(DefaultModelState):
    """The default state of a decoder, and each resident request's gate."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._gates: dict[str, RowGate] = {}
        self._levels: dict[str, str | None] = {}

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """Remember the request's gate."""
        super().add_request(req_index, new_req_data)
        gate = requested_gate(new_req_data.sampling_params, self.model.mixture.spec)
        if gate is not None:
            self._gates[new_req_data.req_id] = gate
        self._levels[new_req_data.req_id] = requested_level(new_req_data.sampling_params)

    def remove_request(self, req_id: str) -> None:
        """Forget it."""
        super().remove_request(req_id)
        self._gates.pop(req_id, None)
        self._levels.pop(req_id, None)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """The model's inputs, as ever; the gates go to their buffers."""
        gates = [self._gates.get(name) for name in input_batch.req_ids]
        positions, tokens = input_batch.num_computed_tokens_np, input_batch.num_scheduled_tokens
        self.model.mixture.gates.write(gates, positions, tokens)
        if self._levels.keys() >= set(input_batch.req_ids):  # else a dummy batch
            levels = [self._levels[name] for name in input_batch.req_ids]
            self.model.mixture.recorder.begin_step(input_batch.req_ids, levels, positions, tokens)
        return super().prepare_inputs(input_batch, req_states)

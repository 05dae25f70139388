"""A traced request on its way through the API process."""

from __future__ import annotations

from typing import Any

from selfmoe_ray.engine.routing_log import LOG, TracedRequest
from selfmoe_ray.engine.vllm_plugin.trace import ROUTING_KEY, requested_level
from selfmoe_ray.errors import UserError


def prepare(sampling_params: Any) -> None:
    """Have a request that asks for its routing computed from its first token on.

    Raises VLLMValidationError, which the API answers with status 400, for an unknown level.
    """
    from vllm.exceptions import VLLMValidationError

    try:
        level = requested_level(sampling_params)
    except UserError as error:
        raise VLLMValidationError(str(error), parameter=ROUTING_KEY) from None
    if level:
        # Tokens from the prefix cache would have no gates.
        sampling_params.skip_reading_prefix_cache = True


def remember(add_request: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
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

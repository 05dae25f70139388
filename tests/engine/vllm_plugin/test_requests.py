"""What becomes of a request before the engine has it."""

from __future__ import annotations

import pytest

from selfmoe_ray.config import GenerationConfig
from selfmoe_ray.run.records import Phase


@pytest.mark.serving
@pytest.mark.parametrize("phase", ["brainstorm", "respond"])
def test_requests_of_generation_and_no_others_are_answered_once(phase: Phase) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from selfmoe_ray.engine.vllm_plugin.requests import set_output_kind
    from selfmoe_ray.generation.ray_pool import sampling_params

    ours, other = SamplingParams(**sampling_params(GenerationConfig(), phase)), SamplingParams(extra_args={"a": 1})
    for params in (ours, other, None):
        set_output_kind(params)
    assert ours.output_kind == RequestOutputKind.FINAL_ONLY
    assert other.output_kind == RequestOutputKind.CUMULATIVE

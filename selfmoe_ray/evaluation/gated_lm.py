"""A mixture behind lm-eval's own vLLM backend: one resident engine, a gate for each call."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from selfmoe_ray.engine import patches
from selfmoe_ray.engine.routing_log import LOG
from selfmoe_ray.engine.vllm_plugin.recorder import ROUTING_KEY
from selfmoe_ray.evaluation import harness
from selfmoe_ray.machines.packages import find_distribution
from selfmoe_ray.mixture.gate import GATE_KEY, ROUTER


def _version(version: Callable[[str], str], distribution: str) -> str:
    """A distribution's version; vllm's where only its CPU build is installed, in vLLM's own form."""
    found = find_distribution("vllm") if distribution == "vllm" else None
    return f"{found.version}+cpu" if found and found.name != "vllm" else version(distribution)


with patches.applied(patches.VLLM_BY_ANY_NAME, _version):
    from lm_eval.models.vllm_causallms import VLLM


class GatedLM(VLLM):
    """lm-eval's vLLM model of a `mixse` directory; prompts, truncation and log-likelihoods are lm-eval's code.

    settings: vLLM's engine arguments.
    """

    def __init__(self, mixse_dir: str, **settings: Any):
        super().__init__(mixse_dir, **settings)
        self.model: Any = GatedEngine(self.model)

    def respond(self, gate: str, requests: Sequence[Any]) -> list[Any]:
        """The answers to lm-eval requests under one gate (see `vllm_plugin.gates.parse_gate`), in order."""
        self.model.gate = gate
        return harness.respond(self, requests)

    def trace(self, requests: Sequence[Any]) -> list[np.ndarray]:
        """MiXSE's gates while it answers requests: [layers, tokens, n] each, prompts included."""
        self.model.gate, self.model.traces = ROUTER, []
        harness.respond(self, requests)
        traces, self.model.traces = self.model.traces, None
        return traces

    @property
    def is_dead(self) -> bool:
        """Whether the engine's core has ended."""
        return bool(self.model.llm_engine.engine_core.resources.engine_dead)

    def close(self) -> None:
        """End the engine's processes."""
        self.model.llm_engine.engine_core.shutdown()


class GatedEngine:
    """A `vllm.LLM` whose requests all ask for one gate. on_step: called after each step of the engine."""

    def __init__(self, llm: Any):
        self._llm = llm
        self.llm_engine = llm.llm_engine
        self.gate = ROUTER
        self.traces: list[np.ndarray] | None = None
        self.on_step: Callable[[], None] = lambda: None
        self._step = llm.llm_engine.step
        llm.llm_engine.step = self._step_aloud

    def _step_aloud(self) -> Any:
        outputs = self._step()
        self.on_step()
        return outputs

    def generate(self, prompts: Sequence[Any], sampling_params: Sequence[Any], **options: Any) -> Any:
        """As `LLM.generate`. A sampled text has a seed of its own, so that it depends on no other request."""
        repeats: Counter[int] = Counter()
        for prompt, params in zip(prompts, sampling_params, strict=True):
            params.extra_args = {**(params.extra_args or {}), GATE_KEY: self.gate}
            if self.traces is not None:
                params.extra_args[ROUTING_KEY] = "layers"
            if params.temperature > 0:
                key = zlib.crc32(repr(prompt["prompt_token_ids"]).encode())
                params.seed = key + repeats[key]
                repeats[key] += 1
        # A bar for each call would hide the progress by shards, and vLLM fails where bars are disabled.
        outputs = self._llm.generate(prompts, sampling_params=sampling_params, **{**options, "use_tqdm": False})
        if self.traces is not None:
            self.traces += [_gates(each) for each in LOG.fetch_offline(self._llm, outputs) if each]
        return outputs


def _gates(routing: dict[str, Any]) -> np.ndarray:
    """[layers, tokens, n] of a `mixse_routing` object, without the tokens that were never fed to the model."""
    layers = routing["choices"][0]["layers"]
    return np.array([[gates for gates in layer if gates is not None] for layer in layers], dtype=np.float32)

"""Model names: the mixture, its base and each expert are one engine under different gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfmoe_ray.mixture.gate import BASE, GATE_KEY, ROUTER
from selfmoe_ray.serving.http.errors import Refused


@dataclass(frozen=True)
class ModelNames:
    """The names that a request's `model` may have."""

    name: str
    experts: tuple[str, ...]

    @property
    def base(self) -> str:
        """The base model's name."""
        return f"{self.name}/base"

    def expert(self, expert: str) -> str:
        """The name of an expert as a model."""
        return f"{self.name}/{expert}"

    @property
    def gates(self) -> dict[str, str]:
        """The gate of each name; the mixture first."""
        return {self.name: ROUTER, self.base: BASE, **{self.expert(expert): expert for expert in self.experts}}

    def choose_gate(self, request: Any) -> None:
        """Give a request the gate of its model name; one that it names itself in `vllm_xargs` stays.

        A request without a model gets the mixture. Raises Refused (404) for an unknown name.
        """
        request.model = request.model or self.name
        if request.model not in self.gates:
            known = ", ".join(self.gates)
            raise Refused(404, f"The model {request.model!r} does not exist; known: {known}", "model")
        gate = self.gates[request.model]
        if gate != ROUTER:
            request.vllm_xargs = {GATE_KEY: gate, **(request.vllm_xargs or {})}

    def cards(self, created: int, max_model_len: int) -> list[dict[str, Any]]:
        """The entries of GET /v1/models. created: seconds since 1970."""
        return [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "selfmoe_ray",
                "parent": None if name == self.name else self.name,
                "max_model_len": max_model_len,
            }
            for name in self.gates
        ]

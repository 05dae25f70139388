"""What a served mixture is made of: the `args` of an application in serve_configs/*.yaml.

Ray Serve accepts unknown keys; `parse_serve_args` refuses them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from selfmoe_ray.config import Section, parse

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class EngineOptions(Section):
    """vLLM's options of the same names; `load_format` and its config choose how weights are read."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = Field(None, ge=1)
    max_num_seqs: int = Field(64, ge=1)
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    tensor_parallel_size: int = Field(1, ge=1)
    enforce_eager: bool = False
    load_format: str = "auto"
    model_loader_extra_config: dict[str, Any] = Field(default_factory=dict)


class RequestLimits(Section):
    """What one request may ask for; more is answered with 400 or 413.

    body_bytes: of the request. max_tokens: of one answer. n: answers to one prompt. prompts: of one
    completion request. A prompt is limited by `engine.max_model_len`.
    """

    body_bytes: int = Field(2**20, ge=1)
    max_tokens: int = Field(2048, ge=1)
    n: int = Field(8, ge=1)
    prompts: int = Field(16, ge=1)


class ServeArgs(Section):
    """One mixture behind the OpenAI API.

    mixse_dir: the `mixse` folder of a finished run; a path that the replica's node sees, s3:// or gs://.
    name: of the model; its base and experts are <name>/base and <name>/<expert>.
    base: where the base model is now, where that differs from what the mixture recorded.
    chat_template: "alpaca", the layout that the experts were trained on, or "base", the tokenizer's own.
    api_key_env, api_key_file: an environment variable or a file with the accepted keys, one a line;
    without either everyone who reaches the port may ask.
    cors_origins: web origins whose pages may read answers; none by default.
    """

    mixse_dir: str = Field(min_length=1)
    name: str = Field("mixse", pattern=f"^{NAME}$")
    base: str | None = None
    engine: EngineOptions = EngineOptions()
    limits: RequestLimits = RequestLimits()
    chat_template: Literal["alpaca", "base"] = "alpaca"
    api_key_env: str | None = None
    api_key_file: str | None = None
    cors_origins: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> ServeArgs:
        if self.api_key_env and self.api_key_file:
            raise ValueError("api_key_env and api_key_file are both set; give one")
        return self


def parse_serve_args(values: dict[str, Any], origin: str = "args") -> ServeArgs:
    """Validate an application's `args`; every problem is one line of the UserError."""
    return parse(ServeArgs, values, origin)

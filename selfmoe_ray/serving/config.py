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
    """Of the weights; auto: what the replica's device computes fast."""
    max_model_len: int | None = Field(None, ge=1)
    """Tokens of a prompt and its answer at most, and no more than the base's context, which it is if not given."""
    max_num_seqs: int = Field(64, ge=1)
    """Requests computed at once at most."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that the engine may take."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs, or on a CPU processes, that share the weights."""
    enforce_eager: bool = False
    """Compile and capture nothing: a faster start, slower steps on a GPU."""
    trust_remote_code: bool = False
    """Run Python files that come with the base model."""
    load_format: str = "auto"
    """How weights are read; mixse_shared maps one copy of the base for all engines of a node."""
    model_loader_extra_config: dict[str, Any] = Field(default_factory=dict)
    """Options of the load format."""


class RequestLimits(Section):
    """What one request may ask for; more is answered with 400 or 413. A prompt is limited by `engine.max_model_len`."""

    body_bytes: int = Field(2**20, ge=1)
    """Bytes of a request's body at most."""
    max_tokens: int = Field(2048, ge=1)
    """Tokens of one answer at most."""
    n: int = Field(8, ge=1)
    """Answers to one prompt at most."""
    prompts: int = Field(16, ge=1)
    """Prompts of one completion request at most."""


class ServeArgs(Section):
    """One mixture behind the OpenAI API."""

    mixse_dir: str = Field(min_length=1)
    """The mixse folder of a finished run: a path that the replica's node sees, s3:// or gs://."""
    name: str = Field("mixse", pattern=f"^{NAME}$")
    """Of the model; its base and experts are <name>/base and <name>/<expert>."""
    base: str | None = None
    """Where the base model is now, where that is not what the mixture recorded."""
    engine: EngineOptions = EngineOptions()
    limits: RequestLimits = RequestLimits()
    chat_template: Literal["alpaca", "base"] = "alpaca"
    """alpaca: the layout that the experts were trained on; base: the tokenizer's own."""
    api_key_env: str | None = None
    """Environment variable with the accepted keys, one a line; without keys everyone may ask."""
    api_key_file: str | None = None
    """File with the accepted keys, one a line, instead of a variable."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may read answers."""

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> ServeArgs:
        if self.api_key_env and self.api_key_file:
            raise ValueError("api_key_env and api_key_file are both set; give one")
        return self


def parse_serve_args(values: dict[str, Any], origin: str = "args") -> ServeArgs:
    """Validate an application's `args`; every problem is one line of the UserError."""
    return parse(ServeArgs, values, origin)

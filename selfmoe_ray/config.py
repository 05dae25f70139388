"""Every knob of a run, once. Loads without torch, ray or vllm; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from selfmoe_ray.errors import UserError, did_you_mean

Auto = Literal["auto"]
# auto: what the machines compute fast (`machines.hardware.fast_dtype`), decided when a run is first taken up.
Dtype = Literal["auto", "float32", "bfloat16"]
Tracker = Literal["tensorboard", "mlflow", "wandb"]


class Section(BaseModel):
    """A part of the config; frozen, and no key passes unread."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)


class BrainstormConfig(Section):
    """How instructions are drawn from the base model (paper, section 3.1)."""

    seeds_in_context: int = Field(3, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(0.98, gt=0, le=1)
    max_tokens: int = Field(384, ge=1)


class RespondConfig(Section):
    """How the base model answers its own instructions (paper, section 3.1)."""

    seeds_in_context: int = Field(5, ge=1)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(512, ge=1)


class FilterConfig(Section):
    """What makes a generated row valid, beside its domain's own shape."""

    min_instruction_words: int = Field(3, ge=1)
    max_instruction_words: int = Field(300, ge=1)
    min_response_words: int = Field(1, ge=1)
    max_response_words: int = Field(600, ge=1)
    max_rouge_l: float = Field(0.7, gt=0, le=1)


class GenerationConfig(Section):
    """From seeds to examples. `seeds_per_domain`: at most so many are shown to the method; the others
    of a domain are held out for measuring."""

    examples_per_domain: int = Field(5000, ge=1)
    accept_fewer: bool = False
    seeds_per_domain: int = Field(100, ge=1)
    max_rounds: int = Field(10, ge=1)
    oversample: float = Field(1.5, ge=1)
    part_size: int = Field(256, ge=1)
    dtype: Dtype = "auto"
    max_model_len: int = Field(4096, ge=128)
    brainstorm: BrainstormConfig = BrainstormConfig()
    respond: RespondConfig = RespondConfig()
    filters: FilterConfig = FilterConfig()


class RouterConfig(Section):
    """What the router reads and how it gates (see `selfmoe_ray.mixture.router`)."""

    scope: Literal["layer", "shared"] = "layer"
    accumulate: bool = True
    tau: float = Field(8.0, gt=0)


class MixtureConfig(Section):
    """The shape of the experts and their router (paper, section 3.2)."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    num_experts_per_tok: int = Field(1, ge=1)
    router: RouterConfig = RouterConfig()


class OptimizerConfig(Section):
    """AdamW and its schedule; lengths are in epochs over each domain's rows."""

    learning_rate: float = Field(3e-4, gt=0)
    epochs: float = Field(3, gt=0)
    batch_size: int = Field(32, ge=1)
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    weight_decay: float = Field(0.0, ge=0)


class RouterTrainingConfig(OptimizerConfig):
    """The router's training: a fit to the domain labels, then the language-model loss."""

    init: Literal["labels", "random"] = "labels"
    fit_tokens: int = Field(16384, ge=1)
    epochs: float = Field(1, ge=0)


class TrainingConfig(Section):
    """From examples to experts and a router. `synthetic_share`: of each domain's synthetic rows."""

    sources: list[Literal["synthetic", "seeds"]] = Field(["synthetic"], min_length=1)
    synthetic_share: float = Field(1.0, gt=0, le=1)
    max_length: int = Field(1024, ge=16)
    dtype: Dtype = "auto"
    experts: OptimizerConfig = OptimizerConfig()
    router: RouterTrainingConfig = RouterTrainingConfig()


class MeasureConfig(Section):
    """The first measure: response NLL on rows that no stage trained on."""

    held_out_fraction: float = Field(0.1, gt=0, lt=1)
    max_rows_per_domain: int = Field(200, ge=1)
    answer_tokens: int = Field(128, ge=1)


class GenerationResources(Section):
    """Devices of the vLLM actors. `engines`: actors in all, over all pools.

    max_failures: how often an engine may end before its prompts are given in smaller portions, down to one.
    stall_seconds: a pool that answers nothing for so long is taken for dead.
    """

    pools: Literal["auto", "shared", "per_domain"] = "auto"
    engines: Auto | int = "auto"
    gpus_per_engine: Auto | float = "auto"
    cpus_per_engine: int = Field(1, ge=0)
    tensor_parallel_size: int = Field(1, ge=1)
    engine_kwargs: dict[str, Any] = {}
    env_vars: dict[str, str] = {}
    max_failures: int = Field(2, ge=0)
    stall_seconds: float = Field(1800, gt=0)


class TrainingResources(Section):
    """Devices of the trainers. ZeRO and micro-batches do not change what is learned."""

    experts_per_trainer: Auto | int = "auto"
    workers_per_trainer: Auto | int = "auto"
    gpus_per_worker: Auto | float = "auto"
    cpus_per_worker: Auto | int = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 2
    micro_batch_size: int = Field(8, ge=1)
    gradient_checkpointing: bool = False
    checkpoint_every_steps: int = Field(50, ge=1)
    max_failures: int = Field(3, ge=0)


class ClusterResources(Section):
    """What has to be there before work begins, and how long an autoscaler may take to bring it."""

    cpus: int = Field(0, ge=0)
    gpus: int = Field(0, ge=0)
    wait_seconds: float = Field(1800, gt=0)


class Resources(Section):
    """Every number about devices; none of them changes what a run computes.

    check_memory: refuse a plan whose estimate exceeds a device's memory.
    """

    check_memory: bool = True
    cluster: ClusterResources = ClusterResources()
    generation: GenerationResources = GenerationResources()
    training: TrainingResources = TrainingResources()


class RunConfig(Section):
    """One run: what is made, from what, where."""

    run_name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    root: str = "runs"
    base_model: str = "embedded"
    trust_remote_code: bool = False
    domains: list[str] = Field(["knowledge", "reasoning", "math", "coding"], min_length=1)
    seed: int = 0
    trackers: list[Tracker] = []
    generation: GenerationConfig = GenerationConfig()
    mixture: MixtureConfig = MixtureConfig()
    training: TrainingConfig = TrainingConfig()
    measure: MeasureConfig = MeasureConfig()
    resources: Resources = Resources()

    @field_validator("domains")
    @classmethod
    def _distinct(cls, domains: list[str]) -> list[str]:
        repeated = sorted({name for name in domains if domains.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is listed more than once")
        return domains


def load_config(path: str, overrides: list[str] = ()) -> RunConfig:  # type: ignore[assignment]
    """Read a YAML config and apply `a.b=value` overrides (values are YAML).

    Raises UserError that names the field, what was found and what would be right.
    """
    import yaml

    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UserError(f"--config: cannot read {path!r}: {error.strerror}") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return parse_config(values, path)


def parse_config(values: dict[str, Any], origin: str = "config") -> RunConfig:
    """Validate a run's settings; see `parse`."""
    return parse(RunConfig, values, origin)


def parse(section: type[S], values: dict[str, Any], origin: str) -> S:
    """Validate a mapping; every problem is one line of the UserError."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_explain(section, problem)}" for problem in error.errors()]
        raise UserError("\n".join([f"{origin}: {len(lines)} setting(s) to mend", *lines])) from None


def _apply(values: dict[str, Any], override: str) -> None:
    import yaml

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set: expected key=value, found {override!r}")
    *folders, leaf = key.split(".")
    for folder in folders:
        values = values.setdefault(folder, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: {folder!r} is a value, not a section")
    try:
        values[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: {text!r} is not valid YAML") from None


def _explain(section: type[Section], problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']} (found {problem['input']!r})"
    known = _known_keys(section, problem["loc"][:-1])
    return f"{where}: unknown setting; {did_you_mean(str(problem['loc'][-1]), known)}"


def _known_keys(section: Any, location: tuple[Any, ...]) -> list[str]:
    for name in location:
        section = section.model_fields[name].annotation
    return sorted(section.model_fields)

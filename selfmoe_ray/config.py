"""Every knob of a run, once. Loads without torch, ray or vllm; unknown keys are refused."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from selfmoe_ray.errors import UserError, did_you_mean

Auto = Literal["auto"]
# auto: what the machines compute fast (`machines.hardware.fast_dtype`), decided when a run is first taken up.
Dtype = Literal["auto", "float32", "bfloat16"]
Tracker = Literal["tensorboard", "mlflow", "wandb"]


class Section(BaseModel):
    """A part of the config; frozen, and no key passes unread."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Section)


class BrainstormConfig(Section):
    """How instructions are drawn from the base model (paper, section 3.1)."""

    seeds_in_context: int = Field(3, ge=1)
    """Seeds shown in each prompt, drawn anew for each."""
    temperature: float = Field(1.0, ge=0)
    """Of sampling; 0 is greedy."""
    top_p: float = Field(0.98, gt=0, le=1)
    """Share of the probability that is sampled from."""
    max_tokens: int = Field(384, ge=1)
    """Tokens of a task at most; one that is longer is rejected."""


class RespondConfig(Section):
    """How the base model answers its own instructions (paper, section 3.1)."""

    seeds_in_context: int = Field(5, ge=1)
    """Seeds shown with their responses, the same for all prompts of a wave."""
    temperature: float = Field(0.0, ge=0)
    """Of sampling; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of the probability that is sampled from."""
    max_tokens: int = Field(512, ge=1)
    """Tokens of a response at most; one that is longer is rejected."""


class FilterConfig(Section):
    """What makes a generated row valid, beside its domain's own shape."""

    min_instruction_words: int = Field(3, ge=1)
    """Words of instruction and input at least."""
    max_instruction_words: int = Field(300, ge=1)
    """Words of instruction and input at most."""
    min_response_words: int = Field(1, ge=1)
    """Words of a response at least."""
    max_response_words: int = Field(600, ge=1)
    """Words of a response at most."""
    max_rouge_l: float = Field(0.7, gt=0, le=1)
    """ROUGE-L (F1) to an earlier task or a seed from which on a task counts as its duplicate."""


class GenerationConfig(Section):
    """From seeds to examples."""

    examples_per_domain: int = Field(5000, ge=1)
    """Rows to make of each domain."""
    accept_fewer: bool = False
    """Go on with what there is where a domain has fewer rows after max_rounds."""
    seeds_per_domain: int = Field(100, ge=1)
    """Seeds shown to the method at most; the others of a domain are held out for measuring."""
    max_rounds: int = Field(10, ge=1)
    """Waves of brainstorming at most."""
    oversample: float = Field(1.5, ge=1)
    """Tasks brainstormed in the first wave, as a multiple of examples_per_domain."""
    part_size: int = Field(256, ge=1)
    """Prompts whose completions are kept as one file, and lost together."""
    dtype: Dtype = "auto"
    """Of the base in the engines."""
    max_model_len: int = Field(4096, ge=128)
    """Tokens of a prompt and its completion at most, and no more than the base's context."""
    brainstorm: BrainstormConfig = BrainstormConfig()
    respond: RespondConfig = RespondConfig()
    filters: FilterConfig = FilterConfig()


class RouterConfig(Section):
    """What the router reads and how it gates (see `selfmoe_ray.mixture.router`)."""

    scope: Literal["layer", "shared"] = "layer"
    """A linear map for each layer, or one shared by all (the paper's)."""
    accumulate: bool = True
    """Average the logits over the layers so far; false is the paper's."""
    tau: float = Field(8.0, gt=0)
    """Factor of the logits before the softmax; larger is sharper."""


class MixtureConfig(Section):
    """The shape of the experts and their router (paper, section 3.2)."""

    rank: int = Field(8, ge=1)
    """Rank r of each expert's A and B."""
    alpha: float = Field(16.0, gt=0)
    """An expert's output is scaled by alpha / rank."""
    num_experts_per_tok: int = Field(1, ge=1)
    """Experts that the router keeps for each token."""
    router: RouterConfig = RouterConfig()


class OptimizerConfig(Section):
    """AdamW and its schedule; lengths are in epochs over each domain's rows."""

    learning_rate: float = Field(3e-4, gt=0)
    """Peak of the schedule."""
    epochs: float = Field(3, gt=0)
    """Passes over each domain's rows; fractions count."""
    batch_size: int = Field(32, ge=1)
    """Rows of an optimizer step, of each expert or of the router."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises to its peak."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate goes on after its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW."""


class RouterTrainingConfig(OptimizerConfig):
    """The router's training: a fit to the domain labels, then the language-model loss."""

    init: Literal["labels", "random"] = "labels"
    """Start from a fit to the domain labels, or at random (the paper's)."""
    fit_tokens: int = Field(16384, ge=1)
    """Tokens that the fit to labels sees."""
    epochs: float = Field(1, ge=0)
    """Passes over the union of the rows by the language-model loss; 0 leaves the fit as it is."""


class TrainingConfig(Section):
    """From examples to experts and a router."""

    sources: list[Literal["synthetic", "seeds"]] = Field(["synthetic"], min_length=1)
    """Rows to learn from: generated ones, the seeds shown, or both."""
    synthetic_share: float = Field(1.0, gt=0, le=1)
    """Share of each domain's generated rows that is learned from."""
    max_length: int = Field(1024, ge=16)
    """Tokens of a row at most; the end of a longer one is cut off."""
    dtype: Dtype = "auto"
    """Of the frozen base; what is trained is float32."""
    experts: OptimizerConfig = OptimizerConfig()
    router: RouterTrainingConfig = RouterTrainingConfig()


class MeasureConfig(Section):
    """The first measure: response NLL on rows that no stage trained on."""

    held_out_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of each domain's generated rows that no stage trains on."""
    max_rows_per_domain: int = Field(200, ge=1)
    """Rows of a domain to measure at most, generated ones and seeds each."""
    answer_tokens: int = Field(128, ge=1)
    """Tokens of each answer in the report at most."""


class GenerationResources(Section):
    """Devices of the vLLM engines."""

    pools: Literal["auto", "shared", "per_domain"] = "auto"
    """Engines for each domain, or shared by all; auto: shared where there are fewer engines than domains."""
    engines: Auto | int = "auto"
    """vLLM engines in all; auto: one for each set of GPUs, or one without GPUs."""
    gpus_per_engine: Auto | float = "auto"
    """GPUs of an engine; auto: tensor_parallel_size where the cluster has GPUs."""
    cpus_per_engine: int = Field(1, ge=0)
    """CPUs that Ray reserves for each worker of an engine."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Workers that share an engine's weights."""
    engine_kwargs: dict[str, Any] = {}
    """Further arguments of vLLM's engine; they have the last word."""
    env_vars: dict[str, str] = {}
    """Environment of the engines' processes; it has the last word."""
    max_failures: int = Field(2, ge=0)
    """How often an engine may end before it is given fewer prompts at a time, down to one."""
    stall_seconds: float = Field(1800, gt=0)
    """Seconds without an answer after which an engine is taken for dead."""


class TrainingResources(Section):
    """Devices of the trainers. ZeRO and micro-batches do not change what is learned."""

    experts_per_trainer: Auto | int = "auto"
    """Experts trained on one copy of the base; auto: as few as the devices allow."""
    workers_per_trainer: Auto | int = "auto"
    """Data-parallel workers of a trainer; auto: all devices are used."""
    gpus_per_worker: Auto | float = "auto"
    """GPUs of a worker; auto: 1 where the cluster has GPUs."""
    cpus_per_worker: Auto | int = "auto"
    """CPUs of a worker; auto: 1 beside a GPU, else an even share of a node's."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed's ZeRO stage; 3 splits the base over the workers too."""
    micro_batch_size: int = Field(8, ge=1)
    """Rows of one forward pass of a worker."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, for less memory."""
    checkpoint_every_steps: int = Field(50, ge=1)
    """Optimizer steps between resumable checkpoints."""
    max_failures: int = Field(3, ge=0)
    """How often a trainer may be started anew."""


class ClusterResources(Section):
    """What has to be there before work begins, and how long an autoscaler may take to bring it."""

    cpus: int = Field(0, ge=0)
    """CPUs that the cluster must have before work begins."""
    gpus: int = Field(0, ge=0)
    """GPUs that the cluster must have before work begins."""
    wait_seconds: float = Field(1800, gt=0)
    """Seconds that an autoscaler may take to bring them."""


class Resources(Section):
    """Every number about devices; none of them changes what a run computes."""

    check_memory: bool = True
    """Refuse a plan whose estimate exceeds a device's memory."""
    cluster: ClusterResources = ClusterResources()
    generation: GenerationResources = GenerationResources()
    training: TrainingResources = TrainingResources()


class RunConfig(Section):
    """One run: what is made, from what, where."""

    run_name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder of the run below root."""
    root: str = "runs"
    """Where runs are: a path, s3:// or gs://; every node must see it."""
    base_model: str = "embedded"
    """embedded, embedded:gemma3-270m, a hub id (org/name or org/name@revision), a checkpoint's folder or a .gguf."""
    trust_remote_code: bool = False
    """Run Python files that come with a model."""
    domains: list[str] = Field(["knowledge", "reasoning", "math", "coding"], min_length=1)
    """Built-in domains by name and folders of your own; each becomes an expert."""
    seed: int = 0
    """Of every random choice of the run."""
    trackers: list[Tracker] = []
    """Experiment trackers that get the run's numbers."""
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

"""Every change that this package makes to a library from outside, on one page.

What is put in a target's place stands beside its subject; here stand the reason, the version that it was
written for, and what happens where an installed version no longer fits. docs/patches.md is made from this:

    python -m selfmoe_ray.engine.patches > docs/patches.md
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from selfmoe_ray.engine.vllm_plugin.compatibility import TESTED_VLLM
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.packages import installed_version

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patch:
    """A change to a library.

    target: `module:attribute`, dotted. replaces: what stands in its place, or how it is used otherwise than its
    authors meant. parameters: those of the target that the change relies on. without: what is missed where the
    target no longer fits; None where nothing works without the change, so that it is refused.
    """

    library: str
    version: str
    target: str
    replaces: str
    reason: str
    parameters: tuple[str, ...] = ()
    without: str | None = None


_of_vllm = functools.partial(Patch, "vllm", " and ".join(TESTED_VLLM))

REQUEST_TAKEN = _of_vllm(
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
    "the same, then `engine.vllm_plugin.requests` reads the request's gate and routing level",
    "vLLM checks no `extra_args`, and its prefix cache knows no gates: unlike gates may not share cached keys",
    ("params",),
)
REQUEST_NOTED = _of_vllm(
    "vllm.v1.engine.output_processor:OutputProcessor.add_request",
    "the same, then a traced request is noted in `engine.routing_log`",
    "only here are a request's internal name and its response's id known together",
    ("request",),
)
GATES_WRITTEN = _of_vllm(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs",
    "the same, then the batch's gates are written to their buffers",
    "the V1 model runner tells a model nothing of its batch's requests; the V2 runner asks for a model state",
    ("scheduler_output", "num_scheduled_tokens"),
)
SEEDS_KEPT = _of_vllm(
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens",
    "the same, without the generators of rows whose token is thrown away",
    "after each part of a prompt the V1 runner samples a token, drops it and rewinds the row's generator, "
    "which a CPU's cannot: such a request would end the engine",
    ("grammar_output",),
)
TOP_P = _of_vllm(
    "vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p_pytorch",
    "`engine.kernels.top_p`, on a CPU",
    "vLLM sorts the vocabulary of every row at every step: 125 ms for 64 rows of 49,152 tokens, here 6 ms",
    ("logits", "k", "p", "allow_cpu_sync"),
    without="sampling with top-p takes longer",
)
CONFIG_HOOKS = _of_vllm(
    "vllm.model_executor.models.config:MODELS_CONFIG_MAP",
    "an entry for each Mixse architecture, which calls its base's own",
    "it is the one place where vLLM lets a model check its config before processes start and weights load",
)
EXPERTS_ATTACHED = _of_vllm(
    "vllm.model_executor.layers.linear:UnquantizedLinearMethod.apply",
    "each linear layer's `quant_method` is a `MixtureLinearMethod` around its own",
    "modules keep their names, so base weights load as ever, and a layer's shards are its experts' too",
    ("layer", "x", "bias"),
)
WEIGHTS_UNPACKED = _of_vllm(
    "vllm.model_executor.layers.linear:UnquantizedLinearMethod.process_weights_after_loading",
    "nothing, for the base's layers under load_format mixse_shared",
    "on a CPU vLLM packs each layer's weights into a private copy, which would end their sharing",
    ("layer",),
)
PRODUCT_UNPACKED = _of_vllm(
    "vllm.model_executor.layers.utils:cpu_unquantized_gemm",
    "it finds torch's product in a layer's `cpu_linear`",
    "the packing that is left out would have put another product there",
    ("layer", "x", "weight", "bias"),
)
CACHE_FETCHED = _of_vllm(
    "vllm.model_executor.model_loader.weight_cache.ipc_loader:IpcModelLoader._fetch_entries",
    "a subclass's, which asks for the mixture's base",
    "a daemon of `vllm preload` knows no plugin: it holds a base and no mixture",
    ("model_config",),
)
CACHE_APPLIED = _of_vllm(
    "vllm.model_executor.model_loader.weight_cache.ipc_loader:IpcModelLoader._apply_entries",
    "a subclass's, which loads the experts after it",
    "the experts are private to an engine, and the daemon has none",
    ("model", "state", "device_index"),
)
ANSWERS_NAMED = _of_vllm(
    "vllm.entrypoints.openai.models.serving:OpenAIServingModels.model_name",
    "the name that the request being answered asked for",
    "vLLM's answers carry the first name served, whichever of a mixture's names was asked for",
    ("lora_request",),
)
HEALTH_ROUTES = _of_vllm(
    "vllm.entrypoints.serve.instrumentator.health:router",
    "/health alone is taken from it",
    "vLLM's own app serves many routes more, which nobody should reach from outside",
)
TOKENIZE_ROUTES = _of_vllm(
    "vllm.entrypoints.serve.tokenize.api_router:router",
    "/tokenize and /detokenize alone are taken from it",
    "the same",
)
SEGMENTS_NAMED = Patch(
    "python",
    "3.11",
    "multiprocessing.shared_memory:_SHM_NAME_PREFIX",
    "a prefix that tells which server's processes made a segment",
    "killed processes leave segments of 160 MB, and Python lets nobody choose their names",
    without="shared memory of killed engines stays until someone removes it",
)
POOL_STEPS = Patch(
    "ray",
    "2.60",
    "ray.data.llm:Processor",
    "its `preprocess` and `postprocess` are None",
    "each step is a Ray task for every block, on the cores that a CPU engine computes with",
    ("preprocess", "postprocess"),
)
POOL_RESTARTS = Patch(
    "ray",
    "2.60",
    "ray.llm._internal.batch.stages.base:StatefulStage",
    "limits of restarts and retries in its `map_batches_kwargs`",
    "without a limit a prompt that ends its engine would end engines for ever",
    ("map_batches_kwargs",),
)
NO_COMPILED_COLLECTIVE = Patch(
    "deepspeed",
    "0.19",
    "deepspeed.ops:__compatible_ops__",
    "`deepspeed_shm_comm` is False in it",
    "on a CPU DeepSpeed would compile a shared-memory collective, which needs a C++ compiler; gloo does",
)
VLLM_BY_ANY_NAME = Patch(
    "lm_eval",
    "0.4",
    "importlib.metadata:version",
    "while lm-eval's vLLM backend is imported, the version of vllm is that of its CPU build where only that is there",
    "lm-eval asks for the version of vllm and knows no other name of it",
    ("distribution_name",),
)
ITEMS_SCORED = Patch(
    "lm_eval",
    "0.4",
    "lm_eval.api.task:Task.instances",
    "`_instances`, which it returns, are those of one shard",
    "lm-eval filters all items of a task at once; shards are scored as they are answered",
)


def apply(patch: Patch, replacement: Any, on: Any = None) -> None:
    """Put `replacement` in the target's place, or of the attribute of that name `on` an instance.

    A function is called with what it replaces before its own arguments. Twice is as good as once. Raises
    UserError where the target does not fit; warns and changes nothing where the patch can be missed.
    """
    if checked(patch) is None:
        return
    owner, name = (on, patch.target.rpartition(".")[2]) if on is not None else _place(patch)
    original = getattr(owner, name)
    if getattr(original, "mixse_patch", None) == patch:
        return
    if callable(original):
        replacement = _around(original, replacement)
        replacement.mixse_patch = patch
    setattr(owner, name, replacement)


@contextmanager
def applied(patch: Patch, replacement: Any) -> Iterator[None]:
    """`apply` for the length of a block."""
    owner, name = _place(patch)
    original = getattr(owner, name)
    apply(patch, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


def checked(patch: Patch) -> Any:
    """The target as it is now, for changes that are made otherwise than by `apply`.

    Raises UserError where it does not fit; None, with a warning, where the patch can be missed.
    """
    target, problem = _look(patch)
    if problem is None:
        return target
    installed = platform.python_version() if patch.library == "python" else installed_version(patch.library)
    message = (
        f"{patch.library} {installed} is installed, but selfmoe_ray's change of {patch.target} was written for "
        f"{patch.version} and does not fit: {problem}"
    )
    if patch.without is None:
        raise UserError(f"{message}; install {patch.library} {patch.version}")
    logger.warning("%s. Going on without it: %s.", message, patch.without)
    return None


def require_fit(library: str) -> None:
    """Check all changes of a library before the first is made. Raises UserError for one that does not fit and cannot
    be missed."""
    for patch in all_patches():
        if patch.library == library and patch.without is None:
            checked(patch)


def _look(patch: Patch) -> tuple[Any, str | None]:
    """The target, and why it does not fit."""
    try:
        owner, name = _place(patch)
        target = getattr(owner, name)
        there = inspect.signature(target).parameters if patch.parameters else ()
    except (ImportError, AttributeError) as error:
        return None, str(error)
    missing = [name for name in patch.parameters if name not in there]
    return target, f"it has no parameter {', '.join(missing)}" if missing else None


def _place(patch: Patch) -> tuple[Any, str]:
    """What has the target as an attribute, and that attribute's name."""
    module, _, path = patch.target.partition(":")
    *parents, name = path.split(".")
    return functools.reduce(getattr, parents, importlib.import_module(module)), name


def _around(original: Callable[..., Any], replacement: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def around(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    return around


def all_patches() -> list[Patch]:
    """In the order of this page."""
    return [each for each in globals().values() if isinstance(each, Patch)]


def page() -> str:
    """docs/patches.md."""
    lines = [
        "# What this package changes in other libraries",
        "",
        "Made from `selfmoe_ray/engine/patches.py` by `python -m selfmoe_ray.engine.patches`.",
        "",
        "Each change is checked before it is made: its target must exist and have the parameters that the change",
        "uses. Where that fails, the start ends with a message that names target and versions, unless a last",
        "sentence here says what is missed without the change.",
    ]
    for library, version in dict.fromkeys((each.library, each.version) for each in all_patches()):
        lines += ["", f"## {library} {version}", ""]
        lines += [_entry(each) for each in all_patches() if each.library == library]
    return "\n".join(lines) + "\n"


def _entry(patch: Patch) -> str:
    parameters = f" ({', '.join(patch.parameters)})" if patch.parameters else ""
    missed = f" Without it, {patch.without}." if patch.without else ""
    return f"- `{patch.target}`{parameters}: {patch.replaces}. Why: {patch.reason}.{missed}"


if __name__ == "__main__":
    print(page(), end="")

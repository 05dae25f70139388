"""How many vLLM engines a cluster gets for generation, and with which arguments."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfmoe_ray.config import GenerationConfig, GenerationResources
from selfmoe_ray.engine.threads import BIND
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.limits import cores_to_pin

# Requests that an engine runs at once; more waits in its queue.
_MAX_NUM_SEQS_CPU, _MAX_NUM_SEQS_GPU = 64, 256
# Tokens of one step: what vLLM takes for an `LLM`; its default for other engines favours early first tokens.
_MAX_NUM_BATCHED_TOKENS_CPU, _MAX_NUM_BATCHED_TOKENS_GPU = 4096, 8192
_KV_CACHE_GIB_CPU = 2
KV_CACHE_SPACE = "VLLM_CPU_KVCACHE_SPACE"
# Short blocks let the prefix cache keep nearly all of a prompt's constant start (vLLM's CPU default is 128).
_BLOCK_SIZE_CPU = 32

# A request whose `extra_args` has it is answered once, at its end: vLLM's own setting is an enumeration, which
# Ray Data's rows cannot carry, and without it every step makes an answer for every request in the batch.
FINAL_ONLY_KEY = "selfmoe_final_only"
# In the environment of an engine on a CPU that is to find a row's top-p tokens without sorting its logits; what
# serves a mixture always does.
FAST_TOP_P = "SELFMOE_RAY_FAST_TOP_P"


@dataclass(frozen=True)
class Pool:
    """Engines that serve some domains; every row of those domains goes to one of them."""

    domains: tuple[str, ...]
    engines: int


@dataclass(frozen=True)
class EnginePlan:
    """Engines of a run. `gpus` and `cpus` are those of one engine."""

    pools: tuple[Pool, ...]
    gpus: float
    cpus: int
    tensor_parallel_size: int
    explanation: str

    @property
    def devices(self) -> int:
        """GPUs of all engines, or their workers where there are none."""
        return sum(pool.engines for pool in self.pools) * self.tensor_parallel_size

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What Ray reserves for one engine: a bundle for each tensor-parallel worker."""
        gpu = {"GPU": self.gpus / self.tensor_parallel_size} if self.gpus else {}
        return [{"CPU": self.cpus, **gpu}] * self.tensor_parallel_size


def plan_engines(resources: GenerationResources, domains: Sequence[str], available: Mapping[str, float]) -> EnginePlan:
    """Decide on engines and pools from what the cluster has (`ray.cluster_resources()`).

    Raises UserError, before any work, where the config asks for more than there is.
    """
    tensor_parallel = resources.tensor_parallel_size
    gpus_there, cpus_there = available.get("GPU", 0.0), available.get("CPU", 0.0)
    gpus = float(tensor_parallel if gpus_there else 0)
    if resources.gpus_per_engine != "auto":
        gpus = float(resources.gpus_per_engine)
    engines = max(1, int(gpus_there // gpus) if gpus else 1)
    if resources.engines != "auto":
        engines = int(resources.engines)
    for kind, each, there in (
        ("GPU", gpus, gpus_there),
        ("CPU", resources.cpus_per_engine * tensor_parallel, cpus_there),
    ):
        if engines * each > there:
            raise UserError(
                f"resources.generation: {engines} engine(s) of {each:g} {kind} ask for "
                f"{engines * each:g} {kind}, the cluster has {there:g}; "
                f"lower engines, tensor_parallel_size or {kind.lower()}s_per_engine"
            )
    pools, explanation = _plan_pools(resources, domains, engines)
    device = f"{gpus:g} GPU" if gpus else "CPU"
    return EnginePlan(
        pools,
        gpus,
        resources.cpus_per_engine,
        tensor_parallel,
        f"{engines} engine(s) on {device}; {explanation}",
    )


def _plan_pools(resources: GenerationResources, domains: Sequence[str], engines: int) -> tuple[tuple[Pool, ...], str]:
    enough = engines >= len(domains)
    if resources.pools == "per_domain" and not enough:
        raise UserError(
            f"resources.generation.pools: per_domain asks for an engine for each of {len(domains)} domains, "
            f"but there are {engines}; add devices, raise engines, or choose auto or shared"
        )
    asked = "" if resources.pools == "auto" else ", as asked"
    if resources.pools == "shared" or not enough:
        why = asked or f", as {engines} engine(s) are fewer than {len(domains)} domains"
        return (Pool(tuple(domains), engines),), f"one pool shared by all domains{why}"
    each, over = divmod(engines, len(domains))
    pools = tuple(Pool((name,), each + (index < over)) for index, name in enumerate(domains))
    return pools, f"a pool of its own for each domain{asked}"


def engine_kwargs(
    plan: EnginePlan, config: GenerationConfig, resources: GenerationResources, trust_remote_code: bool = False
) -> dict[str, Any]:
    """vLLM's engine arguments; `resources.engine_kwargs` has the last word."""
    settings: dict[str, Any] = {
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": plan.tensor_parallel_size,
        "max_num_seqs": _MAX_NUM_SEQS_GPU if plan.gpus else _MAX_NUM_SEQS_CPU,
        "max_num_batched_tokens": max(
            config.max_model_len, _MAX_NUM_BATCHED_TOKENS_GPU if plan.gpus else _MAX_NUM_BATCHED_TOKENS_CPU
        ),
        "disable_log_stats": True,
        "trust_remote_code": trust_remote_code,
    }
    if not plan.gpus:
        settings |= {
            # Compiling takes over a minute and does not pay at the sizes that a CPU serves.
            "enforce_eager": True,
            "distributed_executor_backend": "mp",
            "block_size": _BLOCK_SIZE_CPU,
            # A partly prefilled request with a sampler seed of its own ends vLLM's CPU worker:
            # it winds the generator back, which torch's CPU generator cannot.
            "enable_chunked_prefill": False,
        }
    return settings | resources.engine_kwargs


def env_vars(plan: EnginePlan, resources: GenerationResources, is_single_node: bool) -> dict[str, str]:
    """Environment of the engines' processes; `resources.env_vars` has the last word."""
    if plan.gpus:
        return dict(resources.env_vars)
    settings = {
        FAST_TOP_P: "1",
        KV_CACHE_SPACE: str(_KV_CACHE_GIB_CPU),
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if is_single_node and sum(pool.engines for pool in plan.pools) == 1 and (cores := cores_to_pin()):
        # Left alone, vLLM keeps a core back for its scheduler, half of a two-core machine.
        settings[BIND] = ",".join(map(str, cores))
    intel_openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if intel_openmp.exists():
        settings["LD_PRELOAD"] = str(intel_openmp)
    return settings | resources.env_vars


def concurrent_requests(max_num_seqs: int) -> int:
    """Requests in flight that keep an engine full while finished ones are handed on."""
    return max_num_seqs + max(4, max_num_seqs // 8)

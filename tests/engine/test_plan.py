from __future__ import annotations

from typing import Any

import pytest

from selfmoe_ray.config import GenerationConfig, GenerationResources
from selfmoe_ray.engine.plan import engine_kwargs, env_vars, plan_engines
from selfmoe_ray.errors import UserError

DOMAINS = ["knowledge", "reasoning", "math", "coding"]
CPU_ONLY = {"CPU": 2.0}
EIGHT_GPUS = {"CPU": 64.0, "GPU": 8.0}


def plan(available: dict[str, float], **resources: Any):  # type: ignore[no-untyped-def]
    return plan_engines(GenerationResources(**resources), DOMAINS, available)


def test_without_gpus_one_engine_serves_all_domains() -> None:
    made = plan(CPU_ONLY)
    assert [(pool.domains, pool.engines) for pool in made.pools] == [(tuple(DOMAINS), 1)]
    assert made.bundles == [{"CPU": 1}]
    assert made.explanation == (
        "1 engine(s) on CPU; one pool shared by all domains, as 1 engine(s) are fewer than 4 domains"
    )


def test_every_gpu_gets_an_engine_and_every_domain_a_pool() -> None:
    made = plan({"CPU": 64.0, "GPU": 6.0})
    assert [(pool.domains, pool.engines) for pool in made.pools] == [
        (("knowledge",), 2),
        (("reasoning",), 2),
        (("math",), 1),
        (("coding",), 1),
    ]
    assert made.bundles == [{"CPU": 1, "GPU": 1.0}]


def test_tensor_parallel_engines_take_several_gpus() -> None:
    made = plan(EIGHT_GPUS, tensor_parallel_size=4)
    assert [(pool.domains, pool.engines) for pool in made.pools] == [(tuple(DOMAINS), 2)]
    assert made.bundles == [{"CPU": 1, "GPU": 1.0}] * 4


def test_a_shared_pool_can_be_asked_for() -> None:
    assert [pool.engines for pool in plan(EIGHT_GPUS, pools="shared").pools] == [8]


@pytest.mark.parametrize(
    ("available", "resources", "said"),
    [
        (CPU_ONLY, {"pools": "per_domain"}, "an engine for each of 4 domains, but there are 1"),
        (CPU_ONLY, {"gpus_per_engine": 1}, "ask for 1 GPU, the cluster has 0"),
        (EIGHT_GPUS, {"engines": 9}, "9 engine(s) of 1 GPU ask for 9 GPU, the cluster has 8"),
        (CPU_ONLY, {"cpus_per_engine": 3}, "ask for 3 CPU, the cluster has 2"),
        (EIGHT_GPUS, {"engines": 4, "tensor_parallel_size": 4}, "ask for 16 GPU, the cluster has 8"),
    ],
)
def test_the_impossible_is_refused(available: dict[str, float], resources: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        plan(available, **resources)
    assert said in str(error.value) and "resources.generation" in str(error.value)


def test_the_config_has_the_last_word_on_engines() -> None:
    resources = GenerationResources(
        engine_kwargs={"max_num_seqs": 3}, env_vars={"VLLM_CPU_KVCACHE_SPACE": "9", "OTHER": "1"}
    )
    made = plan_engines(resources, DOMAINS, CPU_ONLY)
    settings = engine_kwargs(made, GenerationConfig(max_model_len=128), resources)
    assert settings["max_num_seqs"] == 3 and settings["max_model_len"] == 128
    environment = env_vars(made, resources, is_single_node=True)
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "9" and environment["OTHER"] == "1"


def test_cpu_settings_stay_away_from_gpu_engines() -> None:
    resources = GenerationResources()
    made = plan_engines(resources, DOMAINS, EIGHT_GPUS)
    assert "enforce_eager" not in engine_kwargs(made, GenerationConfig(), resources)
    assert env_vars(made, resources, is_single_node=True) == {}


def test_a_step_holds_at_least_one_whole_prompt() -> None:
    resources = GenerationResources()
    made = plan_engines(resources, DOMAINS, CPU_ONLY)
    for longest, expected in ((1024, 4096), (6000, 6000)):
        settings = engine_kwargs(made, GenerationConfig(max_model_len=longest), resources)
        assert settings["max_num_batched_tokens"] == expected

"""Plans on paper: from one machine to 64 GPUs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from selfmoe_ray.base_model.sizes import DecoderSizes
from selfmoe_ray.config import RunConfig, parse_config
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.hardware import Cluster
from selfmoe_ray.measure.statistics import Estimate
from selfmoe_ray.pipeline.memory import GIB
from selfmoe_ray.pipeline.plan import RunPlan, plan_run

SMOL = DecoderSizes(30, 576, 1536, 9, 3, 64, 49152, tied=True)
GEMMA_7B = DecoderSizes(28, 3072, 24576, 16, 16, 256, 256000, tied=True)
LLAMA_70B = DecoderSizes(80, 8192, 28672, 64, 8, 128, 128256, tied=False)
DOMAINS = ["knowledge", "reasoning", "math", "coding"]
DEVICE_STAGES = ["generate", "experts", "router", "measure"]
TO_THE_ROUTER = DEVICE_STAGES[:3]
LARGE = {
    "resources": {
        "generation": {"tensor_parallel_size": 4},
        "training": {"zero_stage": 3, "gradient_checkpointing": True},
    },
    "training": {"router": {"init": "random"}},
}


def cpu_nodes(count: int, gib: int = 24) -> Cluster:
    return Cluster((8,) * count, (0,) * count, (gib * GIB,) * count)


def gpu_nodes(nodes: int, gpus: int, gib: int = 80, memory: int = 2048) -> Cluster:
    return Cluster((64,) * nodes, (gpus,) * nodes, (memory * GIB,) * nodes, gib * GIB)


def plan(
    cluster: Cluster,
    shape: DecoderSizes,
    stages: list[str] = DEVICE_STAGES,
    domains: list[str] = DOMAINS,
    **settings: Any,
) -> RunPlan:
    config: RunConfig = parse_config(settings)
    # As a run has it on machines that are fast in it.
    sections = {
        name: getattr(config, name).model_copy(update={"dtype": "bfloat16"}) for name in ("generation", "training")
    }
    config = config.model_copy(update=sections)
    return plan_run(config, domains, shape, cluster, stages)


def workers(made: RunPlan) -> dict[str, str]:
    return {stage.name: stage.workers for stage in made.stages}


def memory(made: RunPlan) -> dict[str, Estimate]:
    return {stage.name: stage.memory for stage in made.stages}


@pytest.mark.parametrize(("nodes", "experts"), [(1, 4), (2, 2), (4, 1)])
def test_every_node_of_a_small_cluster_trains(nodes: int, experts: int) -> None:
    made = workers(plan(cpu_nodes(nodes), SMOL))
    assert list(made) == DEVICE_STAGES
    assert made["experts"].startswith(f"{nodes} trainer(s) of up to {experts} expert(s)") and made[
        "generate"
    ].startswith("1 engine(s) on CPU")
    assert made["router"].startswith("1 trainer over 4 expert(s); " + f"{nodes} worker(s)")


@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_every_gpu_generates_and_trains(gpus: int) -> None:
    made = workers(plan(gpu_nodes(1, gpus), SMOL))
    assert made["generate"].startswith(f"{gpus} engine(s) on 1 GPU")
    assert made["experts"].startswith(f"{gpus} trainer(s)")


def test_the_papers_base_fits_on_four_gpus_of_80_gib() -> None:
    checkpointing = {"resources": {"training": {"gradient_checkpointing": True}}}
    used = memory(plan(gpu_nodes(1, 4), GEMMA_7B, **checkpointing))
    assert all(18 * GIB < each.total < 80 * GIB for each in used.values()), used
    assert used["experts"].parts["base"] == 2 * GEMMA_7B.parameters


def test_70b_on_64_gpus_is_split_over_the_workers_of_each_expert() -> None:
    made = plan(gpu_nodes(8, 8), LLAMA_70B, TO_THE_ROUTER, **LARGE)
    said, used = workers(made), memory(made)
    assert said["generate"].startswith("16 engine(s) on 4 GPU; a pool of its own for each domain")
    assert said["experts"].startswith("4 trainer(s) of up to 1 expert(s); 16 worker(s)")
    assert said["router"].startswith("1 trainer over 4 expert(s); 64 worker(s)")
    assert used["experts"].parts["base"] == pytest.approx(2 * LLAMA_70B.parameters / 16, abs=1)
    assert all(each.fits for each in used.values())


@pytest.mark.parametrize(
    ("stage", "settings", "said"),
    [
        ("generate", {}, "resources.generation.tensor_parallel_size=2"),
        ("experts", {}, "resources.training.zero_stage=3, resources.training.gradient_checkpointing=true"),
        ("router", {}, "training.router.init=random (no fit to labels), resources.training.zero_stage=3"),
        ("measure", LARGE, "jobs/stage_mixse.py"),
    ],
)
def test_70b_as_it_would_not_fit_says_what_would(stage: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        plan(gpu_nodes(8, 8), LLAMA_70B, [stage], **settings)
    assert f"{stage}: does not fit into a device's memory" in str(refused.value)
    assert f"what would fit: {said}" in str(refused.value)


def test_nodes_that_cannot_load_70b_for_all_their_workers_are_refused() -> None:
    with pytest.raises(UserError, match="8 workers of a node load the base with 1051 GiB of main memory"):
        plan(gpu_nodes(8, 8, memory=1024), LLAMA_70B, ["experts"], **LARGE)


def test_a_proposal_fits() -> None:
    with pytest.raises(UserError) as refused:
        plan(gpu_nodes(1, 1, gib=40), GEMMA_7B, ["experts"])
    (proposal,) = [line for line in str(refused.value).splitlines() if "what would fit" in line]
    changes = dict(pair.removeprefix("resources.training.").split("=") for pair in proposal.split(": ")[1].split(", "))
    assert memory(plan(gpu_nodes(1, 1, gib=40), GEMMA_7B, ["experts"], resources={"training": changes}))


def test_no_setting_makes_70b_fit_on_one_gpu() -> None:
    with pytest.raises(UserError, match=r"what would fit: devices of \d+ GiB"):
        plan(gpu_nodes(1, 1), LLAMA_70B, ["experts"])


def test_a_thousand_domains_share_what_there_is() -> None:
    domains = [f"domain{number}" for number in range(1000)]
    small = {"gradient_checkpointing": True, "micro_batch_size": 1}
    made = plan(gpu_nodes(8, 8), SMOL, domains=domains, resources={"training": small})
    said = workers(made)
    assert said["generate"].startswith("64 engine(s) on 1 GPU; one pool shared by all domains")
    assert said["experts"].startswith("64 trainer(s) of up to 16 expert(s); 1 worker(s)")
    assert all(each.fits for each in memory(made).values())


def test_memory_that_is_not_known_refuses_nothing_and_says_so() -> None:
    made = plan(Cluster((64,), (1,)), LLAMA_70B)
    assert "a device's memory is unknown" in "\n".join(made.lines())


def test_the_check_can_be_turned_off() -> None:
    assert not memory(plan(cpu_nodes(1), GEMMA_7B, resources={"check_memory": False}))["experts"].fits


def test_a_number_of_workers_that_does_not_divide_the_heads_is_refused() -> None:
    with pytest.raises(UserError, match="2 does not divide the model's 9 attention heads"):
        plan(gpu_nodes(1, 2), SMOL, resources={"generation": {"tensor_parallel_size": 2}})

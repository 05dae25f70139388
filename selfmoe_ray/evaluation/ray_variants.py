"""How variants of a run's mixture are trained on Ray: by the stages of a run."""

from __future__ import annotations

from collections.abc import Sequence

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.evaluation.variants import Variant
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import VariantDir
from selfmoe_ray.run.stages import Making, Stage
from selfmoe_ray.training.ray_stage import train_experts, train_jointly, train_router
from selfmoe_ray.training.stage import assemble, expert_products, joint_products, mixse_product, router_product


def variant_stages(
    variant: Variant, domains: Sequence[str], base: BaseModel, run_dir: VariantDir, emit: Emit
) -> list[Stage]:
    """What makes a variant, in order; domains: the run's, by name. They need a running Ray where one is missing."""
    config, experts = variant.config, variant.experts
    if variant.trains == "jointly":
        together = joint_products(config, domains, experts, base, run_dir)
        train = [
            Stage("joint", together, lambda _: train_jointly(config, domains, experts, together, base, run_dir, emit))
        ]
    else:
        used = [name for name in domains if name in experts]
        router = router_product(config, used, base, run_dir)
        train = [Stage("router", [router], lambda todo: train_router(config, used, todo, base, run_dir, emit))]
        if variant.trains == "experts and router":
            products = expert_products(config, used, base, run_dir)
            train.insert(
                0, Stage("experts", products, lambda todo: train_experts(config, used, todo, base, run_dir, emit))
            )

    def make_mixse(_: object) -> Making:
        yield from assemble(config, experts, base, run_dir)
        emit("variant", message="finished", name=variant.name, experts=len(experts))

    return [*train, Stage("mixse", [mixse_product(config, experts, base, run_dir)], make_mixse)]

"""Trains variants of a run's mixture on Ray, by the stages of a run."""

from __future__ import annotations

from collections.abc import Sequence

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.evaluation.variants import Variant
from selfmoe_ray.run.events import Emit
from selfmoe_ray.run.run_dir import VariantDir
from selfmoe_ray.training.mixse import assemble, mixse_manifest
from selfmoe_ray.training.ray_stage import train_experts, train_jointly, train_router


def train_variants(
    variants: Sequence[tuple[Variant, VariantDir]], domains: Sequence[Domain], base: BaseModel, emit: Emit
) -> None:
    """Train what is not trained yet, one variant after the other; domains: the run's, in order.

    Needs a running Ray where something is left to train. Raises UserError where a finished one was made of
    other data or with other settings.
    """
    for variant, folder in variants:
        _train(variant, domains, base, folder, emit)


def _train(variant: Variant, domains: Sequence[Domain], base: BaseModel, run_dir: VariantDir, emit: Emit) -> None:
    config = variant.config
    used = [domain for domain in domains if variant.trains == "jointly" or domain.name in variant.experts]
    if variant.trains == "jointly":
        train_jointly(config, used, variant.experts, base, run_dir, emit)
    else:
        if variant.trains == "experts and router":
            train_experts(config, used, base, run_dir, emit)
        train_router(config, used, base, run_dir, emit)
    if not run_dir.is_done(run_dir.MIXSE, *mixse_manifest(config, variant.experts, base, run_dir), redo="mixse"):
        assemble(config, variant.experts, base, run_dir)
        emit("variant", message="finished", name=variant.name, experts=len(variant.experts))

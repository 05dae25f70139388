"""What the training stages make, and what each depends on; the step that makes `mixse/`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.config import RunConfig
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.run.stages import Made, Making, Product


def expert_products(config: RunConfig, domains: Sequence[str], base: BaseModel, run_dir: RunDir) -> list[Product]:
    """The experts of domains, each trained on its own rows; domains are names, in order."""
    settings = {
        **_common_settings(config, base),
        "mixture": config.mixture.model_dump(include={"rank", "alpha"}),
    }
    settings["training"]["experts"] = config.training.experts.model_dump()
    redo = run_dir.redo("experts")
    return [Product(run_dir.expert(name), settings, (run_dir.data(name),), redo) for name in domains]


def router_product(config: RunConfig, domains: Sequence[str], base: BaseModel, run_dir: RunDir) -> Product:
    """The router of the domains' experts."""
    settings = {
        **_common_settings(config, base),
        "mixture": config.mixture.model_dump(),
        "experts": list(domains),
    }
    settings["training"]["router"] = config.training.router.model_dump()
    folders = (*map(run_dir.data, domains), *map(run_dir.expert, domains))
    return Product(run_dir.ROUTER, settings, folders, run_dir.redo("router"))


def joint_products(
    config: RunConfig, domains: Sequence[str], experts: Sequence[str], base: BaseModel, run_dir: RunDir
) -> list[Product]:
    """Experts and their router that are trained together on the rows of all domains, the router last."""
    settings = {
        **_common_settings(config, base),
        "mixture": config.mixture.model_dump(),
        "experts": list(experts),
        "jointly": True,
    }
    settings["training"]["experts"] = config.training.experts.model_dump()
    data, redo = tuple(map(run_dir.data, domains)), run_dir.redo("router")
    return [Product(folder, settings, data, redo) for folder in (*map(run_dir.expert, experts), run_dir.ROUTER)]


def mixse_product(config: RunConfig, experts: Sequence[str], base: BaseModel, run_dir: RunDir) -> Product:
    """The mixture of experts, in this order, and the router."""
    settings = {
        "mixture": config.mixture.model_dump(),
        "base_model": base.value,
        "base_hash": base.content_hash,
    }
    return Product(run_dir.MIXSE, settings, (*map(run_dir.expert, experts), run_dir.ROUTER), run_dir.redo("mixse"))


def assemble(config: RunConfig, experts: Sequence[str], base: BaseModel, run_dir: RunDir) -> Making:
    """Write `mixse/` from finished experts, in this order, and the router."""
    from selfmoe_ray.mixture.checkpoint import assemble_mixse
    from selfmoe_ray.mixture.spec import MixtureSpec

    spec = MixtureSpec.uniform(list(experts), config.mixture, base.value, base.content_hash, base.revision)
    with contextlib.ExitStack() as stack:
        read = run_dir.storage.local_folder_to_read
        adapters = {name: stack.enter_context(read(run_dir.expert(name))) for name in experts}
        router = stack.enter_context(read(run_dir.ROUTER))
        folder = stack.enter_context(run_dir.storage.local_folder_to_write(run_dir.MIXSE))
        assemble_mixse(spec, adapters, router, folder, base)
    yield Made(run_dir.MIXSE, {"experts": len(experts)})


def _common_settings(config: RunConfig, base: BaseModel) -> dict[str, Any]:
    training = config.training.model_dump(include={"sources", "max_length", "dtype"})
    if config.training.synthetic_share < 1:
        training["synthetic_share"] = config.training.synthetic_share
    return {
        "seed": config.seed,
        "base_model": base.value,
        "base_hash": base.content_hash,
        "training": training,
        "measure": config.measure.model_dump(include={"held_out_fraction", "max_rows_per_domain"}),
    }

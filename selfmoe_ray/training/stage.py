"""The training stages' rows and manifests: what an expert or the router depends on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfmoe_ray.base_model import BaseModel
from selfmoe_ray.config import RunConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.run.records import Example
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.training.dataset import draw_share, split_held_out

Expected = tuple[dict[str, Any], dict[str, str]]


def training_examples(config: RunConfig, domain: str, run_dir: RunDir) -> list[Example]:
    """The rows that a domain's expert and the router learn from; none is used for measuring.

    Raises UserError where there is none.
    """
    examples: list[Example] = []
    if "synthetic" in config.training.sources:
        measure = config.measure
        examples, _ = split_held_out(
            run_dir.read_examples(domain), measure.held_out_fraction, measure.max_rows_per_domain, config.seed
        )
        examples = draw_share(examples, config.training.synthetic_share, config.seed)
    if "seeds" in config.training.sources:
        seeds = run_dir.read_seeds(domain, held_out=False)
        examples += [
            Example(f"{domain}/seed/{number}", domain, seed.instruction, seed.input, seed.output)
            for number, seed in enumerate(seeds)
        ]
    if not examples:
        raise UserError(
            f"domain {domain!r}: no row to train on from training.sources = {config.training.sources}; "
            "generate more examples or add 'seeds' to training.sources"
        )
    return examples


def expert_manifest(config: RunConfig, domain: str, base: BaseModel, run_dir: RunDir) -> Expected:
    """The settings and inputs that `experts/<domain>/manifest.json` must carry."""
    settings = {
        **_common_settings(config, base),
        "mixture": config.mixture.model_dump(include={"rank", "alpha"}),
    }
    settings["training"]["experts"] = config.training.experts.model_dump()
    return settings, {run_dir.data(domain): run_dir.manifest_hash(run_dir.data(domain))}


def router_manifest(config: RunConfig, domains: Sequence[str], base: BaseModel, run_dir: RunDir) -> Expected:
    """The settings and inputs that `router/manifest.json` must carry; domains are names, in order."""
    settings = {
        **_common_settings(config, base),
        "mixture": config.mixture.model_dump(),
        "experts": list(domains),
    }
    settings["training"]["router"] = config.training.router.model_dump()
    folders = [*map(run_dir.data, domains), *map(run_dir.expert, domains)]
    return settings, {folder: run_dir.manifest_hash(folder) for folder in folders}


def joint_manifest(
    config: RunConfig, domains: Sequence[str], experts: Sequence[str], base: BaseModel, run_dir: RunDir
) -> Expected:
    """The settings and inputs of experts and a router that were trained together; domains are names."""
    settings = {
        **_common_settings(config, base),
        "mixture": config.mixture.model_dump(),
        "experts": list(experts),
        "jointly": True,
    }
    settings["training"]["experts"] = config.training.experts.model_dump()
    return settings, {folder: run_dir.manifest_hash(folder) for folder in map(run_dir.data, domains)}


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

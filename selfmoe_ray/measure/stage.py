"""The measure stage's rows and manifest: what it measures on, and what it depends on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfmoe_ray.config import RunConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.run.records import Example
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.training.dataset import split_held_out


def expected_manifest(
    config: RunConfig, domains: Sequence[str], run_dir: RunDir
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings and inputs that `measure/manifest.json` must carry; domains are names."""
    settings = {
        "measure": config.measure.model_dump(),
        "max_length": config.training.max_length,
        "dtype": config.training.dtype,
        "seed": config.seed,
    }
    folders = [run_dir.MIXSE, *map(run_dir.data, domains)]
    return settings, {folder: run_dir.manifest_hash(folder) for folder in folders}


def unseen_examples(config: RunConfig, domains: Sequence[str], run_dir: RunDir) -> dict[str, list[Example]]:
    """By row set, what no stage trained on: generated examples held out, and seeds not shown."""
    limit = config.measure.max_rows_per_domain
    found: dict[str, list[Example]] = {"held_out": [], "seeds": []}
    for domain in domains:
        _, held_out = split_held_out(
            run_dir.read_examples(domain), config.measure.held_out_fraction, limit, config.seed
        )
        found["held_out"] += held_out
        for number, seed in enumerate(run_dir.read_seeds(domain, held_out=True)[:limit]):
            unseen = f"{domain}/unseen-seed/{number}"
            found["seeds"].append(Example(unseen, domain, seed.instruction, seed.input, seed.output))
    found = {row_set: examples for row_set, examples in found.items() if examples}
    if not found:
        raise UserError(
            "measure: no row is left that no stage trained on; lower generation.seeds_per_domain "
            "or raise generation.examples_per_domain"
        )
    return found

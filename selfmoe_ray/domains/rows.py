"""Who sees which row: what the method learns from, and what is kept unseen for measuring. Pure.

A domain's seeds are split when it is generated (`seeds.jsonl`), all its rows when a later stage first needs them
(`rows.json`), anew where the settings that decide it are others; every stage reads what is written there.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import Any, Literal

from selfmoe_ray.config import RunConfig
from selfmoe_ray.domains.domain import Domain
from selfmoe_ray.errors import UserError
from selfmoe_ray.run.records import Example, Seed
from selfmoe_ray.run.run_dir import RunDir

Side = Literal["train", "held_out"]


def split_seeds(domain: Domain, used: int, seed: int) -> tuple[list[Seed], list[Seed]]:
    """Draw at most `used` seeds that the method may see; the second list is held out.

    The same for the same domain and `seed`; a larger `used` keeps what a smaller one drew. A domain
    with no more than `used` seeds shows them all and holds none out.
    """
    count = len(domain.seeds)
    order = random.Random(f"{domain.name}/{seed}").sample(range(count), count)
    drawn = [domain.seeds[index] for index in order]
    return drawn[:used], drawn[used:]


def split_held_out(
    examples: Sequence[Example], fraction: float, max_rows: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, held out), both in the given order; each domain is to be split by itself.

    The rows held out are those with the smallest hashes of seed and id, so the split does not
    depend on the order of the rows. At least one row is held out of two or more.
    """
    count = min(max_rows, max(1, round(fraction * len(examples)))) if len(examples) > 1 else 0
    chosen = {example.id for example in _ranked(examples, seed)[:count]}
    train = [example for example in examples if example.id not in chosen]
    return train, [example for example in examples if example.id in chosen]


def draw_share(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """That share of the rows, rounded up, in the given order; a larger share keeps what a smaller one drew."""
    chosen = {example.id for example in _ranked(examples, seed)[: math.ceil(share * len(examples))]}
    return [example for example in examples if example.id in chosen]


def training_examples(config: RunConfig, domain: str, run_dir: RunDir) -> list[Example]:
    """The rows that a domain's expert and the router learn from; none is used for measuring.

    Raises UserError where there is none.
    """
    generated, seeds = _rows(config, domain, run_dir, "train")
    examples: list[Example] = []
    if "synthetic" in config.training.sources:
        examples += draw_share(generated, config.training.synthetic_share, config.seed)
    if "seeds" in config.training.sources:
        examples += seeds
    if not examples:
        raise UserError(
            f"domain {domain!r}: no row to train on from training.sources = {config.training.sources}; "
            "generate more examples or add 'seeds' to training.sources"
        )
    return examples


def unseen_examples(config: RunConfig, domains: Sequence[str], run_dir: RunDir) -> dict[str, list[Example]]:
    """By row set, what no stage trained on: generated examples held out, and seeds not shown.

    Raises UserError where there is none.
    """
    found: dict[str, list[Example]] = {"held_out": [], "seeds": []}
    for domain in domains:
        generated, seeds = _rows(config, domain, run_dir, "held_out")
        found["held_out"] += generated
        found["seeds"] += seeds[: config.measure.max_rows_per_domain]
    found = {row_set: examples for row_set, examples in found.items() if examples}
    if not found:
        raise UserError(
            "measure: no row is left that no stage trained on; lower generation.seeds_per_domain "
            "or raise generation.examples_per_domain"
        )
    return found


def _rows(config: RunConfig, domain: str, run_dir: RunDir, side: Side) -> tuple[list[Example], list[Example]]:
    """The domain's generated examples and its seeds on one side."""
    generated = run_dir.read_examples(domain)
    seeds = [example for held_out in (False, True) for example in _seed_examples(domain, run_dir, held_out)]
    chosen = set(_decided(config, domain, generated, run_dir)[side])
    return [row for row in generated if row.id in chosen], [row for row in seeds if row.id in chosen]


def _decided(config: RunConfig, domain: str, generated: Sequence[Example], run_dir: RunDir) -> dict[str, Any]:
    """The ids of each side, with what decides them; written to the run where it is not there yet."""
    settings = config.measure.model_dump(include={"held_out_fraction", "max_rows_per_domain"}) | {"seed": config.seed}
    made_with = {"settings": settings, "data": run_dir.manifest_hash(run_dir.data(domain))}
    found = run_dir.read_rows(domain)
    if found is not None and found["made_with"] == made_with:
        return found
    sides = split_held_out(generated, config.measure.held_out_fraction, config.measure.max_rows_per_domain, config.seed)
    rows: dict[str, Any] = {"made_with": made_with}
    for side, of_side in zip(("train", "held_out"), sides, strict=True):
        rows[side] = [row.id for row in [*of_side, *_seed_examples(domain, run_dir, side == "held_out")]]
    run_dir.write_rows(domain, rows)
    return rows


def _seed_examples(domain: str, run_dir: RunDir, held_out: bool) -> list[Example]:
    kind = "unseen-seed" if held_out else "seed"
    return [
        Example(f"{domain}/{kind}/{number}", domain, seed.instruction, seed.input, seed.output)
        for number, seed in enumerate(run_dir.read_seeds(domain, held_out))
    ]


def _ranked(examples: Sequence[Example], seed: int) -> list[Example]:
    return sorted(examples, key=lambda example: hashlib.sha256(f"{seed}/{example.id}".encode()).digest())

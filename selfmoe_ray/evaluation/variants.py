"""Mixtures that were trained otherwise on a run's data, by name: what each is made of. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selfmoe_ray.config import RunConfig
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.systems import DATA, FIRST, INSTANCE, JOINT, MIXSE, SEEDS, expert_system, split_number
from selfmoe_ray.run.run_dir import RunDir, VariantDir


@dataclass(frozen=True)
class Variant:
    """experts: of its mixture, in order. trains: its router alone on the run's experts, the experts and
    then the router as a run does, or both together. config: the run's, with what differs."""

    name: str
    experts: tuple[str, ...]
    trains: Literal["router", "experts and router", "jointly"]
    config: RunConfig

    def folder(self, run_dir: RunDir) -> VariantDir:
        """Its folders inside the run."""
        return VariantDir(run_dir, self.name, shares_experts=self.trains == "router")


def find_variant(name: str, config: RunConfig, domains: Sequence[str]) -> Variant | None:
    """The variant of a name, or None for a name that is no variant's; domains: names, in order.

    Raises UserError where the run has no such one.
    """
    everyone = tuple(domains)
    whole = {
        INSTANCE: Variant(name, (INSTANCE,), "jointly", config),
        JOINT: Variant(name, everyone, "jointly", config),
        SEEDS: Variant(name, everyone, "experts and router", _training(config, sources=["seeds"])),
    }
    kind, number = split_number(name) or (name, 0)
    if kind not in (FIRST, DATA, INSTANCE) or not number:
        return whole.get(name)
    if kind == FIRST:
        _check_count(name, number, domains)
        return Variant(name, everyone[:number], "router", config)
    _check_percent(name, number, config)
    less = _training(config, synthetic_share=number / 100 * config.training.synthetic_share)
    if kind == INSTANCE:
        return Variant(name, (INSTANCE,), "jointly", less)
    return Variant(name, everyone, "experts and router", less)


def _check_count(name: str, number: int, domains: Sequence[str]) -> None:
    if not 2 <= number < len(domains):
        raise UserError(
            f"--systems: {name!r} is no mixture of its own: of {len(domains)} experts, the first is "
            f"{expert_system(domains[0])}, and all of them are {MIXSE}"
        )


def _check_percent(name: str, percent: int, config: RunConfig) -> None:
    if percent >= 100 or "synthetic" not in config.training.sources:
        raise UserError(
            f"--systems: {name!r} must be of 1 to 99 percent of the synthetic data, in a run that trains on it "
            f"(training.sources = {config.training.sources})"
        )


def _training(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})

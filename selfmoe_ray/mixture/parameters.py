"""How small a mixture is: parameter counts and shares of the base."""

from __future__ import annotations

from dataclasses import dataclass

from selfmoe_ray.mixture.model import MixtureModel


@dataclass(frozen=True)
class ParameterShares:
    """Numbers of parameters; shares are fractions of the base's."""

    base: int
    experts: dict[str, int]
    router: int

    @property
    def added(self) -> int:
        """All that the mixture adds to the base."""
        return sum(self.experts.values()) + self.router

    def __str__(self) -> str:
        parts = [f"{name} {count:,} ({count / self.base:.2%})" for name, count in self.experts.items()]
        parts.append(f"router {self.router:,} ({self.router / self.base:.2%})")
        return f"base {self.base:,} parameters; {', '.join(parts)}; all {self.added:,} ({self.added / self.base:.2%})"


def count_parameters(model: MixtureModel) -> ParameterShares:
    """Count a mixture's parameters; zero padding of unequal ranks is not counted."""
    lora = {id(p) for linear in model.linears.values() for i in range(linear.num_experts) for p in linear.lora(i)}
    base = sum(p.numel() for p in model.base.parameters() if id(p) not in lora)
    experts = {}
    for index, name in enumerate(model.spec.experts):
        widths = sum(
            linear.lora(index)[0].shape[1] + linear.lora(index)[1].shape[0] for linear in model.linears.values()
        )
        experts[name] = widths * model.spec.ranks[index]
    return ParameterShares(base, experts, sum(p.numel() for p in model.router_parameters()))

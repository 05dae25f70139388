"""What a mixture is, apart from its weights: the `mixse` section of a checkpoint's config.json."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from selfmoe_ray.config import MixtureConfig, RouterConfig, Section

# It becomes a path below the checkpoint, which may come from anyone.
EXPERT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


class MixtureSpec(Section):
    """Experts in order, their LoRA shapes, the router's shape, and the base they belong to.

    `ranks` and `alphas` have one value an expert: a mixture of existing adapters may mix them.
    `base_model` is the value the user gave, `base_hash` its content hash ("" for unknown), `base_revision` the commit
    of the hub's repository that it was then ("" for another kind of base).
    """

    experts: tuple[str, ...] = Field(min_length=1)
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    num_experts_per_tok: int = Field(1, ge=1)
    router: RouterConfig = RouterConfig()
    base_model: str = ""
    base_hash: str = ""
    base_revision: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> MixtureSpec:
        count = len(self.experts)
        odd = [name for name in self.experts if not EXPERT_NAME.fullmatch(name)]
        if odd:
            raise ValueError(f"an expert's name is that of its folder: letters, digits and ._+-, found {odd[0]!r}")
        if len(set(self.experts)) != count:
            raise ValueError(f"experts must have distinct names, found {', '.join(self.experts)}")
        if len(self.ranks) != count or len(self.alphas) != count:
            raise ValueError(f"{count} experts need {count} ranks and alphas")
        if self.num_experts_per_tok > count:
            raise ValueError(f"num_experts_per_tok is {self.num_experts_per_tok}, but there are {count} experts")
        return self

    @property
    def rank(self) -> int:
        """The rank that every expert is padded to with zeros in the stacked layer."""
        return max(self.ranks)

    @property
    def scalings(self) -> tuple[float, ...]:
        """alpha / r of each expert."""
        return tuple(alpha / rank for alpha, rank in zip(self.alphas, self.ranks, strict=True))

    @classmethod
    def uniform(
        cls,
        experts: list[str],
        config: MixtureConfig,
        base_model: str = "",
        base_hash: str = "",
        base_revision: str = "",
    ) -> MixtureSpec:
        """A mixture whose experts all have the config's rank and alpha."""
        return cls(
            experts=tuple(experts),
            ranks=(config.rank,) * len(experts),
            alphas=(config.alpha,) * len(experts),
            num_experts_per_tok=min(config.num_experts_per_tok, len(experts)),
            router=config.router,
            base_model=base_model,
            base_hash=base_hash,
            base_revision=base_revision,
        )

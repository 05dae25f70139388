"""A `mixse` directory as vLLM's processes read it: with its base, by places in the decoder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.gate import is_reserved
from selfmoe_ray.mixture.mixse_dir import MixseDir, parse_section
from selfmoe_ray.mixture.spec import MixtureSpec

LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Place:
    """A linear of the decoder: layer number and path inside the layer, such as `self_attn.q_proj`."""

    layer: int
    path: str

    @classmethod
    def of(cls, module: str) -> Place | None:
        """The place of a full module name; None outside the decoder's layers."""
        found = LAYER.fullmatch(module)
        return cls(int(found[1]), found[2]) if found else None


@dataclass(frozen=True)
class MixseCheckpoint:
    """The directory with its spec, and the directory of its base."""

    mixse: MixseDir
    base: Path

    @property
    def spec(self) -> MixtureSpec:
        """The mixture's."""
        return self.mixse.spec

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raises UserError where a file is missing or damaged, or a shape does not fit the base."""
        for name in self.spec.experts:
            if is_reserved(name):
                raise UserError(f"{self.mixse.folder}: no expert can be called {name!r}; requests name a gate so")
        self.mixse.check(self.base, num_layers, hidden_size)

    def places(self) -> set[Place]:
        """Where any expert has weights."""
        modules = (module for adapter in self.mixse.adapters for module in adapter.modules)
        return {place for module in modules if (place := Place.of(module)) is not None}

    def expert(self, index: int) -> Iterator[tuple[Place, Tensor, Tensor]]:
        """An expert's A [r, in] and B [out, r] of each of its linears."""
        adapter = self.mixse.adapter(index)
        for module, a, b in adapter.pairs():
            place = Place.of(module)
            if place is None:
                raise UserError(f"{adapter.path}: {module} is outside the decoder's layers")
            yield place, a, b


def read_checkpoint(hf_config: Any, folder: str) -> MixseCheckpoint:
    """The checkpoint that a vLLM model config names, its base resolved by `config.verify` before."""
    return MixseCheckpoint(read_mixse(hf_config, folder), Path(hf_config.mixse_base))


def read_mixse(hf_config: Any, folder: str) -> MixseDir:
    """The directory, its `mixse` section with vLLM's --hf-overrides applied. Raises UserError where it is wrong."""
    section = getattr(hf_config, "mixse", None)
    if not Path(folder).is_dir() or section is None:
        raise UserError(f"{folder}: no `mixse` directory; give the one of a finished run")
    return MixseDir(Path(folder), parse_section(section, Path(folder)))

"""A `mixse` directory as vLLM's processes read it: checked by its headers first, tensors later."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.checkpoint import ADAPTER_WEIGHTS, EXPERTS, ROUTER_WEIGHTS
from selfmoe_ray.mixture.gate import is_reserved
from selfmoe_ray.mixture.spec import MixtureSpec

ADAPTER_PREFIX = "base_model.model."
LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)")
Shapes = dict[str, list[int]]


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
    """The directory, its spec, and the directory of its base."""

    folder: Path
    spec: MixtureSpec
    base: Path

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Raises UserError where a file is missing or damaged, or a shape does not fit the base."""
        for name in self.spec.experts:
            if is_reserved(name):
                raise UserError(f"{self.folder}: no expert can be called {name!r}; requests name a gate so")
        base = _base_shapes(self.base)
        for index in range(len(self.spec.experts)):
            self._check_expert(index, base)
        count = num_layers if self.spec.router.scope == "layer" else 1
        wanted = {f"theta.{i}.weight": [len(self.spec.experts), hidden_size] for i in range(count)}
        _, found = _header(self.folder / ROUTER_WEIGHTS)
        if found != wanted:
            path = self.folder / ROUTER_WEIGHTS
            raise UserError(f"{path}: this base needs {_summary(wanted)}, the file has {_summary(found)}")

    def _check_expert(self, index: int, base: Shapes) -> None:
        path = self.adapter(index)
        metadata, shapes = _header(path)
        made_for = metadata.get("base_hash")
        if made_for and self.spec.base_hash and made_for != self.spec.base_hash:
            raise UserError(
                f"{path}: made for base model {metadata.get('base_model')!r} (hash {made_for}), "
                f"this mixture's is {self.spec.base_model!r} (hash {self.spec.base_hash})"
            )
        rank = self.spec.ranks[index]
        for name, shape in shapes.items():
            module, matrix = _parse(path, name)
            full = base.get(f"{module}.weight")
            partner = name.replace("lora_A", "lora_B") if matrix == "A" else name.replace("lora_B", "lora_A")
            if partner not in shapes:
                raise UserError(f"{path}: {name} has no {partner}")
            if full and shape != ([rank, full[1]] if matrix == "A" else [full[0], rank]):
                raise UserError(f"{path}: {name} has shape {shape}, but r is {rank} and {module} is {full}")

    def adapter(self, index: int) -> Path:
        """An expert's weight file."""
        return self.folder / EXPERTS / self.spec.experts[index] / ADAPTER_WEIGHTS

    def places(self) -> set[Place]:
        """Where any expert has weights."""
        names = (name for index in range(len(self.spec.experts)) for name in _header(self.adapter(index))[1])
        return {place for name in names if (place := Place.of(_parse(self.folder, name)[0])) is not None}

    def expert(self, index: int) -> Iterator[tuple[Place, Tensor, Tensor]]:
        """An expert's A [r, in] and B [out, r] of each of its linears."""
        path = self.adapter(index)
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118
                module, matrix = _parse(path, name)
                place = Place.of(module)
                if place is None:
                    raise UserError(f"{path}: {name} is outside the decoder's layers")
                if matrix == "A":
                    yield place, file.get_tensor(name), file.get_tensor(name.replace("lora_A", "lora_B"))

    def theta(self) -> list[Tensor]:
        """The router's matrices [n, hidden], one a layer or one in all."""
        with _open(self.folder / ROUTER_WEIGHTS) as file:
            return [file.get_tensor(f"theta.{index}.weight") for index in range(len(file.keys()))]


def read_checkpoint(hf_config: Any, folder: str) -> MixseCheckpoint:
    """The checkpoint that a vLLM model config names, its base resolved by `config.verify` before."""
    return MixseCheckpoint(Path(folder), read_section(hf_config, folder), Path(hf_config.mixse_base))


def read_section(hf_config: Any, folder: str) -> MixtureSpec:
    """The `mixse` section, with vLLM's --hf-overrides applied. Raises UserError where it is wrong."""
    section = getattr(hf_config, "mixse", None)
    if not Path(folder).is_dir() or section is None:
        raise UserError(f"{folder}: no `mixse` directory; give the one of a finished run")
    try:
        return MixtureSpec.model_validate(section)
    except ValidationError as error:
        raise UserError(f"{folder}/config.json: no valid `mixse` section ({error})") from None


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the checkpoint is not complete") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error})") from None


def _header(path: Path) -> tuple[dict[str, str], Shapes]:
    with _open(path) as file:
        return file.metadata() or {}, {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def _base_shapes(base: Path) -> Shapes:
    """Shapes by name; empty for a base that is not in safetensors."""
    return {name: shape for path in base.glob("*.safetensors") for name, shape in _header(path)[1].items()}


def _parse(path: Path, name: str) -> tuple[str, str]:
    module, _, matrix = name.removeprefix(ADAPTER_PREFIX).rpartition(".lora_")
    if not name.startswith(ADAPTER_PREFIX) or matrix not in ("A.weight", "B.weight"):
        raise UserError(f"{path}: {name} is not a plain LoRA weight")
    return module, matrix[0]


def _summary(shapes: Shapes) -> str:
    return f"{len(shapes)} matrices of shape {' or '.join(sorted({str(shape) for shape in shapes.values()}))}"

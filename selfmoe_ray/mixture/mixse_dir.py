"""A `mixse` directory as transformers, vLLM and merging read it: checked by its files' headers, then its tensors.

mixse/config.json              the base's config, architectures ["Mixse<Base>"], a `mixse` section
mixse/router.safetensors       theta.<layer>.weight [n, hidden], float32
mixse/experts/<name>/          adapter_config.json, adapter_model.safetensors: a stock PEFT adapter
mixse/                         tokenizer and generation files of the base
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.spec import MixtureSpec

# Raised by whatever an older version could not read rightly; a section without one is of the first.
FORMAT = 1
SECTION = "mixse"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ROUTER_WEIGHTS = "router.safetensors"
EXPERTS = "experts"
# Of the architecture that a mixture has in vLLM, before its base's.
ARCHITECTURE_PREFIX = "Mixse"

_ADAPTER_PREFIX = "base_model.model."
Shapes = dict[str, list[int]]


def adapter_key(module: str, matrix: str) -> str:
    """PEFT's name of the matrix "A" or "B" of a linear."""
    return f"{_ADAPTER_PREFIX}{module}.lora_{matrix}.weight"


def theta_key(index: int) -> str:
    """The router's name of a layer's matrix, or of the one that all layers share."""
    return f"theta.{index}.weight"


def section_of(spec: MixtureSpec) -> dict[str, Any]:
    """The `mixse` section that says so; a field that older versions do not know is left out where it says nothing."""
    section = {"format": FORMAT, **spec.model_dump(mode="json")}
    if not spec.base_revision:
        del section["base_revision"]
    return section


@dataclass(frozen=True)
class AdapterFile:
    """The weight file of one expert; rank: the one that the mixture's spec has for it."""

    path: Path
    rank: int
    spec: MixtureSpec

    def check(self, linears: Mapping[str, Sequence[int]], is_whole: bool = False) -> None:
        """Raises UserError where the file is missing or damaged, of another base, half, or does not fit.

        linears: [out, in] by module name; is_whole: whether a linear that is not among them is not there.
        """
        metadata, shapes = read_header(self.path)
        made_for = metadata.get("base_hash")
        if made_for and self.spec.base_hash and made_for != self.spec.base_hash:
            raise UserError(
                f"{self.path}: made for base model {metadata.get('base_model')!r} (hash {made_for}), "
                f"this mixture's is {self.spec.base_model!r} (hash {self.spec.base_hash})"
            )
        named = [(name, *self._parse(name)) for name in shapes]
        if unknown := [name for name, module, _ in named if is_whole and module not in linears]:
            raise UserError(f"{self.path}: {unknown[0]} has no place in this base model ({len(unknown)} such tensors)")
        for name, module, matrix in named:
            partner = adapter_key(module, "B" if matrix == "A" else "A")
            if partner not in shapes:
                raise UserError(f"{self.path}: {name} has no {partner}")
            self._check_shape(name, shapes[name], matrix, module, linears.get(module))

    def _check_shape(
        self, name: str, shape: Sequence[int], matrix: str, module: str, linear: Sequence[int] | None
    ) -> None:
        if linear is None:
            return
        wanted = [self.rank, linear[1]] if matrix == "A" else [linear[0], self.rank]
        if list(shape) != wanted:
            raise UserError(
                f"{self.path}: {name} has shape {list(shape)}, but r is {self.rank} and {module} is {list(linear)}"
            )

    @property
    def modules(self) -> list[str]:
        """The linears that the expert changes, by their module names."""
        return [module for module, matrix in map(self._parse, read_header(self.path)[1]) if matrix == "A"]

    def pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each linear's module name, A [r, in] and B [out, r]."""
        with _open(self.path) as file:
            for module in self.modules:
                yield module, file.get_tensor(adapter_key(module, "A")), file.get_tensor(adapter_key(module, "B"))

    def _parse(self, name: str) -> tuple[str, str]:
        module, _, matrix = name.removeprefix(_ADAPTER_PREFIX).rpartition(".lora_")
        if not name.startswith(_ADAPTER_PREFIX) or matrix not in ("A.weight", "B.weight"):
            raise UserError(f"{self.path}: {name} is not a plain LoRA weight")
        return module, matrix[0]


@dataclass(frozen=True)
class MixseDir:
    """The directory and its spec; no file but config.json is read before it is asked for."""

    folder: Path
    spec: MixtureSpec

    @classmethod
    def open(cls, folder: Path) -> MixseDir:
        """Raises UserError where there is no such directory, its section is wrong, or it is of a newer format."""
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{folder}: no config.json; give the `mixse` directory of a finished run") from None
        except ValueError as error:
            raise UserError(f"{path}: no valid `mixse` section ({error})") from None
        return cls(folder, parse_section(config.get(SECTION), folder))

    def adapter(self, index: int) -> AdapterFile:
        """An expert's weights."""
        return AdapterFile(
            self.folder / EXPERTS / self.spec.experts[index] / ADAPTER_WEIGHTS, self.spec.ranks[index], self.spec
        )

    @property
    def adapters(self) -> list[AdapterFile]:
        """All experts' weights, in order."""
        return [self.adapter(index) for index in range(len(self.spec.experts))]

    def check_router(self, num_layers: int, hidden_size: int) -> None:
        """Raises UserError where the router is missing, damaged, or of other shapes than this base needs."""
        check_router(self.folder, self.spec, num_layers, hidden_size)

    def thetas(self) -> list[Tensor]:
        """The router's matrices [n, hidden], one a layer or one in all."""
        return read_thetas(self.folder)


def parse_section(section: Any, folder: Path) -> MixtureSpec:
    """The spec of a `mixse` section. Raises UserError where it is wrong or of a newer format than is read here."""
    where = folder / "config.json"
    if not isinstance(section, dict):
        raise UserError(f"{where}: no valid `mixse` section; give the `mixse` directory of a finished run")
    found = section.get("format", FORMAT)
    if type(found) is not int or found < 1:
        raise UserError(f"{where}: mixse.format is {found!r}; it is a whole number from 1 on")
    if found > FORMAT:
        raise UserError(
            f"{where}: mixse.format is {found!r}, this version of selfmoe_ray reads up to {FORMAT}; "
            "install a newer selfmoe_ray"
        )
    try:
        return MixtureSpec.model_validate({key: value for key, value in section.items() if key != "format"})
    except ValidationError as error:
        raise UserError(f"{where}: no valid `mixse` section ({error})") from None


def check_router(folder: Path, spec: MixtureSpec, num_layers: int, hidden_size: int) -> None:
    """See `MixseDir.check_router`; folder: the one that the router's file is in."""
    count = num_layers if spec.router.scope == "layer" else 1
    wanted = {theta_key(index): [len(spec.experts), hidden_size] for index in range(count)}
    path = folder / ROUTER_WEIGHTS
    _, found = read_header(path)
    if found != wanted:
        raise UserError(f"{path}: this base needs {_summary(wanted)}, the file has {_summary(found)}")


def read_thetas(folder: Path) -> list[Tensor]:
    """See `MixseDir.thetas`; folder: the one that the router's file is in."""
    with _open(folder / ROUTER_WEIGHTS) as file:
        return [file.get_tensor(theta_key(index)) for index in range(len(file.keys()))]


def read_header(path: Path) -> tuple[dict[str, str], Shapes]:
    """Metadata, and shapes by name, of a safetensors file. Raises UserError where it is missing or damaged."""
    with _open(path) as file:
        return file.metadata() or {}, {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the checkpoint is not complete") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error})") from None


def _summary(shapes: Shapes) -> str:
    return f"{len(shapes)} matrices of shape {' or '.join(sorted({str(shape) for shape in shapes.values()}))}"

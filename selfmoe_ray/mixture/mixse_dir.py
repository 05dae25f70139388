"""A `mixse` directory as transformers, vLLM and merging read it: checked by its files' headers, then its tensors.

mixse/config.json              the base's config, architectures ["Mixse<Base>"], a `mixse` section
mixse/router.safetensors       theta.<layer>.weight [n, hidden], float32
mixse/experts/<name>/          adapter_config.json, adapter_model.safetensors: a stock PEFT adapter
mixse/                         tokenizer and generation files of the base
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from selfmoe_ray.base_model.weights import tensor_shapes
from selfmoe_ray.errors import UserError
from selfmoe_ray.mixture.adapter import AdapterFile
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.mixture.tensor_file import Shapes, check_base, misfits, read_header, read_tensors

# Raised by whatever an older version could not read rightly; a section without one is of the first.
FORMAT = 1
SECTION = "mixse"
ROUTER_WEIGHTS = "router.safetensors"
EXPERTS = "experts"
# Of the architecture that a mixture has in vLLM, before its base's.
ARCHITECTURE_PREFIX = "Mixse"


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
        return AdapterFile(self.folder / EXPERTS / self.spec.experts[index], index, self.spec)

    @property
    def adapters(self) -> list[AdapterFile]:
        """All experts' weights, in order."""
        return [self.adapter(index) for index in range(len(self.spec.experts))]

    def check(self, base: Path, num_layers: int, hidden_size: int) -> None:
        """Compare every file's header with the base's, which is in this directory.

        Raises UserError as `AdapterFile.check`, and where the router is missing, damaged, of another base, or not
        what this base needs.
        """
        linears = {name.removesuffix(".weight"): shape for name, shape in tensor_shapes(base).items()}
        for adapter in self.adapters:
            adapter.check(linears)
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
    """See `MixseDir.check`; folder: the one that the router's file is in."""
    count = num_layers if spec.router.scope == "layer" else 1
    wanted = {theta_key(index): [len(spec.experts), hidden_size] for index in range(count)}
    path = folder / ROUTER_WEIGHTS
    metadata, found = read_header(path)
    if problems := misfits(found, wanted):
        raise UserError(f"{path}: this base needs {_summary(wanted)}, the file has {_summary(found)}: {problems[0]}")
    check_base(path, metadata, spec.base_model, spec.base_hash)


def read_thetas(folder: Path) -> list[Tensor]:
    """See `MixseDir.thetas`; folder: the one that the router's file is in. Raises UserError as `read_tensors`."""
    path = folder / ROUTER_WEIGHTS
    return list(read_tensors(path, map(theta_key, range(len(read_header(path)[1])))))


def _summary(shapes: Shapes) -> str:
    return f"{len(shapes)} matrices of shape {' or '.join(sorted({str(shape) for shape in shapes.values()}))}"

"""Tensors of a safetensors file that belongs to a mixture; what is no plain number is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from selfmoe_ray.base_model.weights import check_numbers
from selfmoe_ray.errors import UserError

Shapes = dict[str, list[int]]
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_header(path: Path) -> tuple[dict[str, str], Shapes]:
    """Metadata, and shapes by name. Raises UserError where the file is missing or damaged."""
    with _open(path) as file:
        return file.metadata() or {}, {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def read_tensors(path: Path, names: Iterable[str]) -> Iterator[Tensor]:
    """Tensors by name, in order. Raises UserError where one is packed or scaled, or holds no finite numbers."""
    with _open(path) as file:
        for name in names:
            tensor: Tensor = file.get_tensor(name)
            if tensor.dtype not in _PLAIN:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise UserError(f"{path}: {name} is {kind}; give it in float32, float16 or bfloat16")
            check_numbers([(name, tensor)], str(path))
            yield tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], base_model: str, base_hash: str) -> None:
    """Write them with the base that they are for. Raises UserError where one holds no finite numbers."""
    check_numbers(tensors.items(), str(path))
    save_file(dict(tensors), path, metadata={"format": "pt", "base_model": base_model, "base_hash": base_hash})


def check_base(path: Path, metadata: Mapping[str, str], base_model: str, base_hash: str) -> None:
    """Raises UserError where a file says that it was made for another base; "" is an unknown hash."""
    made_for = metadata.get("base_hash")
    if made_for and base_hash and made_for != base_hash:
        raise UserError(
            f"{path}: made for base model {metadata.get('base_model')!r} (hash {made_for}), "
            f"this mixture's is {base_model!r} (hash {base_hash})"
        )


def misfits(found: Shapes, wanted: Shapes) -> list[str]:
    """What is missing, of another shape, or left over, in words."""
    return [
        *(f"{name} is missing" for name in wanted if name not in found),
        *(
            f"{name} has shape {list(found[name])}, not {list(shape)}"
            for name, shape in wanted.items()
            if name in found and list(found[name]) != list(shape)
        ),
        *(f"{name} has no place in it" for name in found if name not in wanted),
    ]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the checkpoint is not complete") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error})") from None

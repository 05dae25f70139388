"""A checkpoint's safetensors files: which they are, what their headers say, and whether that is one whole model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# What a shell makes safetensors with of a checkpoint in pickled files.
CONVERT = (
    "python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; a, b = 'FROM', 'TO'; "
    "M.from_pretrained(a, dtype='auto').save_pretrained(b); T.from_pretrained(a).save_pretrained(b)\""
)
# Safetensors' names of the dtypes whose values are the weights themselves; others are packed or scaled.
PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
# A second copy of some models, in their maker's own format, and an adapter, which no base's loader here reads.
NOT_READ = ("consolidated*", "adapter_*")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint; UserError where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"base_model: cannot read {path}: {error}; give a directory in transformers' format") from error


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors. Raises UserError where there are none, or one is not there."""
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        if (folder / WEIGHTS).exists():
            return [folder / WEIGHTS]
        raise UserError(
            f"base_model: {folder} has neither {WEIGHTS} nor {WEIGHTS_INDEX}; "
            "give a checkpoint in transformers' format with safetensors weights.\n"
            "  One with pytorch_model.bin alone becomes such a one by\n"
            f"    {CONVERT}"
        )
    files = [folder / name for name in sorted(set(_weight_map(index).values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"base_model: {index} names {len(files)} files, of which {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there; the checkpoint is not complete"
        )
    return files


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """dtype, shape and data_offsets of each tensor. Raises UserError where the file is damaged or cut off."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            header_size = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(min(header_size, size)))
        header.pop("__metadata__", None)
        end = 8 + header_size + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if end != size:
            raise ValueError(f"its header tells of {end} bytes, the file has {size}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"base_model: {file} is no complete safetensors file: {error}") from error
    return header


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a checkpoint. Raises UserError as `weight_files` and `read_header`."""
    return {name: tensor["shape"] for file in weight_files(folder) for name, tensor in read_header(file).items()}


def check_files(folder: Path) -> None:
    """Refuse a checkpoint whose files are not one whole, unquantised model for every library that reads them.

    Reads headers alone. Raises UserError where a file or a tensor is missing or left over, where transformers and
    vLLM would read different files, and where tensors are quantised.
    """
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    if quantised := config.get("quantization_config") or (isinstance(text, dict) and text.get("quantization_config")):
        method = quantised.get("quant_method", quantised) if isinstance(quantised, dict) else quantised
        raise UserError(
            f"base_model: {folder / 'config.json'}: quantization_config has {method!r}; experts attach to plain linear "
            "layers, so give the checkpoint in bfloat16 or float32 that it was quantised from"
        )
    files = weight_files(folder)
    taken = {file.name for file in files}
    own = sorted(file.name for file in folder.glob("*.safetensors") if not any(map(file.match, NOT_READ)))
    if left := [name for name in own if name not in taken]:
        raise UserError(
            f"base_model: {folder} has {left[0]} beside {', '.join(sorted(taken))}: what is read then depends on the "
            "library that reads it; move what does not belong to the model away"
        )
    headers = {file: read_header(file) for file in files}
    if (folder / WEIGHTS_INDEX).exists():
        _check_index(folder / WEIGHTS_INDEX, headers)
    for file, header in headers.items():
        for name, tensor in header.items():
            if tensor["dtype"] not in PLAIN_DTYPES:
                raise UserError(
                    f"base_model: {file}: {name} is {tensor['dtype']}, not one of {', '.join(PLAIN_DTYPES)}; experts "
                    "attach to plain linear layers, so give the checkpoint that is not quantised"
                )


def check_numbers(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Raises UserError that names the first tensor that holds anything but finite numbers.

    where: what it is part of, with the field or file that is to be mended.
    """
    for name, tensor in tensors:
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{where}: {name} holds values that are no finite numbers; give weights that are")


def check_values(folder: Path) -> None:
    """Read a whole checkpoint once. Raises UserError as `check_numbers`."""
    check_numbers(_tensors(folder), f"base_model: {folder}")


def tensors_of(folder: Path, names: Sequence[str]) -> list[Tensor]:
    """Tensors of a checkpoint by name, in the order asked for."""
    found = dict(_tensors(folder, names))
    return [found[name] for name in names]


def _tensors(folder: Path, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if names is None or name in names:
                    yield name, file.get_tensor(name)


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(f"base_model: {index} has no weight_map; give a checkpoint in transformers' format")
    return found


def _check_index(index: Path, headers: dict[Path, dict[str, Any]]) -> None:
    """Every tensor is where the index says, and nowhere else."""
    weight_map = _weight_map(index)
    for name, file in weight_map.items():
        if name not in headers[index.with_name(file)]:
            raise UserError(f"base_model: {index} says that {name} is in {file}, where it is not")
    for path, header in headers.items():
        for name in header:
            if weight_map.get(name) != path.name:
                raise UserError(
                    f"base_model: {path} has {name}, which {index.name} "
                    f"{f'has in {weight_map[name]}' if name in weight_map else 'does not know'}"
                )

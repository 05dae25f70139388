"""What tells one checkpoint from another, on any machine and at any size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from selfmoe_ray.errors import UserError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# Written by whatever saved the config, without meaning for the model.
VOLATILE_CONFIG = {"_name_or_path", "transformers_version"}
# What a shell makes safetensors with of a checkpoint in pickled files.
CONVERT = (
    "python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; a, b = 'FROM', 'TO'; "
    "M.from_pretrained(a, dtype='auto').save_pretrained(b); T.from_pretrained(a).save_pretrained(b)\""
)
# Tensors up to SAMPLE_CHUNKS * CHUNK bytes are hashed whole.
CHUNK = 64 * 1024
SAMPLE_CHUNKS = 16


def content_hash(folder: Path) -> str:
    """A fingerprint of a checkpoint's weights and config, equal on every machine.

    Covers config.json (but for who saved it), and each tensor's name, dtype, shape and values: all
    bytes of a tensor up to 1 MiB, 16 evenly spaced chunks of 64 KiB of a larger one. How tensors are
    split into files does not matter; the tokenizer is not covered. It tells models apart within
    seconds at any size; it is no defence against tampering.
    Raises UserError where the checkpoint is not there or is truncated.
    """
    config = read_json(folder / "config.json")
    kept = {key: value for key, value in config.items() if key not in VOLATILE_CONFIG}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    digest.update(weights_hash(folder).encode())
    return digest.hexdigest()[:16]


def weights_hash(folder: Path) -> str:
    """The part of `content_hash` that covers the tensors."""
    tensors = {name: digest for file in _weight_files(folder) for name, digest in _tensor_digests(file)}
    return hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint; UserError where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"base_model: cannot read {path}: {error}; give a directory in transformers' format") from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / WEIGHTS_INDEX
    if index.exists():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    raise UserError(
        f"base_model: {folder} has neither {WEIGHTS} nor {WEIGHTS_INDEX}; "
        "give a checkpoint in transformers' format with safetensors weights.\n"
        "  One with pytorch_model.bin alone becomes such a one by\n"
        f"    {CONVERT}"
    )


def _tensor_digests(file: Path) -> Iterator[tuple[str, str]]:
    """Name and digest of each tensor of a safetensors file, from its header and sampled values."""
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            header_size = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(min(header_size, size)))
            header.pop("__metadata__", None)
            data = 8 + header_size
            end = data + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            if end != size:
                raise ValueError(f"its header tells of {end} bytes, the file has {size}")
            for name, tensor in header.items():
                first, last = tensor["data_offsets"]
                digest = hashlib.sha256(f"{tensor['dtype']}{tensor['shape']}".encode())
                for chunk in _sample(stream, data + first, last - first):
                    digest.update(chunk)
                yield name, digest.hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"base_model: {file} is no complete safetensors file: {error}") from error


def _sample(stream: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    if length <= SAMPLE_CHUNKS * CHUNK:
        stream.seek(start)
        yield stream.read(length)
        return
    for chunk in range(SAMPLE_CHUNKS):
        stream.seek(start + (length - CHUNK) * chunk // (SAMPLE_CHUNKS - 1))
        yield stream.read(CHUNK)

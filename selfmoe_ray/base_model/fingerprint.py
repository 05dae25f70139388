"""What tells one checkpoint from another, on any machine and at any size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from selfmoe_ray.base_model.weights import read_header, read_json, weight_files

# Written by whatever saved the config, without meaning for the model.
VOLATILE_CONFIG = {"_name_or_path", "transformers_version"}
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
    tensors = {name: digest for file in weight_files(folder) for name, digest in _tensor_digests(file)}
    return hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()


def _tensor_digests(file: Path) -> Iterator[tuple[str, str]]:
    """Name and digest of each tensor of a safetensors file, from its header and sampled values."""
    header = read_header(file)
    with file.open("rb") as stream:
        data = 8 + int.from_bytes(stream.read(8), "little")
        for name, tensor in header.items():
            first, last = tensor["data_offsets"]
            digest = hashlib.sha256(f"{tensor['dtype']}{tensor['shape']}".encode())
            for chunk in _sample(stream, data + first, last - first):
                digest.update(chunk)
            yield name, digest.hexdigest()


def _sample(stream: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    if length <= SAMPLE_CHUNKS * CHUNK:
        stream.seek(start)
        yield stream.read(length)
        return
    for chunk in range(SAMPLE_CHUNKS):
        stream.seek(start + (length - CHUNK) * chunk // (SAMPLE_CHUNKS - 1))
        yield stream.read(CHUNK)

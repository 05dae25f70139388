"""GGUF files become checkpoint directories: once per content, locked, atomic."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Part of the cache key; raise it when the same file would convert to something else.
CONVERSION = 1
RECORD = "conversion.json"


def cache_root() -> Path:
    """Where converted models are kept: $SELFMOE_RAY_CACHE, else ~/.cache/selfmoe_ray."""
    return Path(os.environ.get("SELFMOE_RAY_CACHE") or Path.home() / ".cache" / "selfmoe_ray")


def converted(parts: Sequence[Path], name: str, weights_hash: Callable[[Path], str]) -> Path:
    """The checkpoint directory of a GGUF file, converted on first use.

    parts: the file, or consecutive pieces of it. name: a readable prefix of the directory's name;
    the rest is a hash of the content, so that equal files share a directory wherever they lie.
    weights_hash: fingerprints a checkpoint's weights; a directory that no longer agrees with what
    was recorded at its conversion is made anew.
    Processes that ask at once wait for the one that converts. Raises UserError for a file that
    cannot be converted and for a full disk.
    """
    from filelock import FileLock

    source = _sha256(parts)
    key = f"{name}-{source[:12]}-v{CONVERSION}"
    folder = cache_root() / "models" / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{key}.lock"):
            if not _intact(folder, weights_hash):
                _convert_atomically(parts, folder, source, weights_hash)
    except OSError as error:
        raise UserError(
            f"base_model: cannot write the converted model to {folder} ({error.strerror or error}); "
            "make room there or point SELFMOE_RAY_CACHE to another folder"
        ) from error
    return folder


def _intact(folder: Path, weights_hash: Callable[[Path], str]) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text())
        return _describe(folder, weights_hash) == record["files"]
    except (OSError, ValueError, KeyError, UserError):
        return False


def _describe(folder: Path, weights_hash: Callable[[Path], str]) -> dict[str, str]:
    """Small files by their whole content, weights by their fingerprint: seconds even for tens of GB."""
    small = sorted(path for path in folder.iterdir() if path.name != RECORD and path.suffix != ".safetensors")
    return {"weights": weights_hash(folder), **{path.name: _sha256([path]) for path in small}}


def _convert_atomically(
    parts: Sequence[Path], folder: Path, source: str, weights_hash: Callable[[Path], str]
) -> None:
    # Holding the lock means that no other process writes here: what lies there is a dead one's.
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    try:
        _convert(parts, partial)
        record = {"source_sha256": source, "files": _describe(partial, weights_hash)}
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert(parts: Sequence[Path], out: Path) -> None:
    file = parts[0] if len(parts) == 1 else _joined(parts, out / "joined.gguf")
    try:
        metadata = _metadata(file)
        tokenizer = _tokenizer(file, metadata)
        model = _model(file)
    except OSError:
        raise
    except Exception as error:
        # gguf and transformers raise whatever a malformed or unsupported file happens to trip.
        raise UserError(
            f"base_model: {file} could not be converted: {error}. It must be a GGUF file of an "
            "architecture that transformers can read"
        ) from error
    _set_special_tokens(model, tokenizer, metadata)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    if len(parts) > 1:
        file.unlink()


def _model(file: Path) -> PreTrainedModel:
    """The dequantised model, in bfloat16.

    A block of 4-bit weights stands for bfloat16 originals with an error of some percent, beside
    which bfloat16's 0.2% does not count (mean response NLL moves in the fourth digit); it halves
    the files, and every later dtype starts from the same values.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )


def _tokenizer(file: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    from selfmoe_ray.base_model import set_pad_token

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers does not carry this flag over; files without it mean yes for SentencePiece vocabularies.
    sentencepiece = metadata.get("tokenizer.ggml.model") == "llama"
    if metadata.get("tokenizer.ggml.add_bos_token", sentencepiece):
        tokenizer.add_bos_token = True
    set_pad_token(tokenizer)
    return tokenizer


def _set_special_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, metadata: dict[str, Any]
) -> None:
    end_of_turn = metadata.get("tokenizer.ggml.eot_token_id")
    ends = [tokenizer.eos_token_id]
    if end_of_turn is not None and end_of_turn not in ends:
        ends.append(end_of_turn)
    generation = model.generation_config
    assert generation is not None
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    generation.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id


def _metadata(file: Path) -> dict[str, Any]:
    """The file's key-values, long arrays left out."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    return {name: field.contents() for name, field in fields.items() if len(field.data) == 1}


def _joined(parts: Sequence[Path], target: Path) -> Path:
    with target.open("wb") as joined:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, joined, 1 << 20)
    return target


def _sha256(parts: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as piece:
            while block := piece.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

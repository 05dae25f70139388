"""GGUF files become checkpoint directories, once per content."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.base_model.cache import cache_root, cached
from selfmoe_ray.base_model.fingerprint import weights_hash
from selfmoe_ray.base_model.gguf_config import ROPE_FREQUENCIES, GgufSettings
from selfmoe_ray.base_model.gguf_file import GgufSource
from selfmoe_ray.base_model.load import refuse_misfits
from selfmoe_ray.base_model.weights import check_numbers
from selfmoe_ray.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Part of the cache key; raise it when the same file would convert to something else.
CONVERSION = 2
RECORD = "conversion.json"


def converted(gguf: GgufSource, name: str) -> Path:
    """The checkpoint directory of a GGUF, converted on first use.

    name: a readable prefix of the directory's name; the rest is a hash of the content, so that equal files share
    a directory wherever they lie. A directory that no longer agrees with what was recorded at its conversion is
    made anew. Processes that ask at once wait for the one that converts. Raises UserError for a file that cannot be
    converted, or of which a tensor or a setting would be lost, and for a full disk.
    """
    source = _sha256(gguf.files)
    key = f"{name}-{source[:12]}-v{CONVERSION}"

    def convert(folder: Path) -> None:
        print(f"Converting {key} to a checkpoint in {folder.parent} (once)", file=sys.stderr, flush=True)
        folder.mkdir()
        _convert(gguf, folder)
        record = {"source_sha256": source, "files": _describe(folder)}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")

    try:
        return cached(f"models/{key}", convert, _intact)
    except OSError as error:
        raise UserError(
            f"base_model: cannot write the converted model to {cache_root() / 'models' / key} "
            f"({error.strerror or error}); make room there or point SELFMOE_RAY_CACHE to another folder"
        ) from error


def _intact(folder: Path) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text())
        return _describe(folder) == record["files"]
    except (OSError, ValueError, KeyError, UserError):
        return False


def _describe(folder: Path) -> dict[str, str]:
    """Small files by their whole content, weights by their fingerprint: seconds even for tens of GB."""
    small = sorted(path for path in folder.iterdir() if path.name != RECORD and path.suffix != ".safetensors")
    return {"weights": weights_hash(folder), **{path.name: _sha256([path]) for path in small}}


def _convert(gguf: GgufSource, out: Path) -> None:
    from gguf import GGUFReader

    shown = gguf.files[0]
    try:
        file = gguf.whole(out)
        reader = GGUFReader(file)
        settings = GgufSettings.read(reader, shown)
        metadata = _metadata(reader)
        tokenizer = _tokenizer(file, metadata)
        model = _model(file, reader, settings)
        _set_end_of_turn(model, metadata)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    except UserError:
        raise
    except Exception as error:
        # gguf and transformers raise whatever a malformed or unsupported file happens to trip;
        # an errno marks the operating system's own errors (a full disk, no permission).
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"base_model: {shown} could not be converted: {error}. It must be a GGUF file of an "
            "architecture that transformers can read"
        ) from error
    if file not in gguf.files:
        file.unlink()


def _model(file: Path, reader: Any, settings: GgufSettings) -> PreTrainedModel:
    """The dequantised model, in bfloat16, with all of the file's tensors and nothing else.

    A block of 4-bit weights stands for bfloat16 originals with an error of some percent, beside
    which bfloat16's 0.2% does not count (SmolLM2: mean response NLL 1.50251 against 1.50256); it halves
    the files, and every later dtype starts from the same values.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    settings.complete(config)
    model, report = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        config=config,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    # Of a GGUF, transformers reports neither tensors that it has no name for nor shapes other than the config's.
    report["unexpected_keys"] |= _left_over(reader, settings.architecture, model)
    with torch.device("meta"):
        wanted = AutoModelForCausalLM.from_config(config).state_dict()
    report["mismatched_keys"] |= {
        (name, each.shape, wanted[name].shape)
        for name, each in model.state_dict().items()
        if each.shape != wanted[name].shape
    }
    refuse_misfits(str(settings.file), report)
    check_numbers(model.named_parameters(), f"base_model: {settings.file}")
    return model


def _left_over(reader: Any, architecture: str, model: PreTrainedModel) -> set[str]:
    """Tensors of the file that no parameter of the model is made from; rotary factors are part of its config."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, model.config.num_hidden_layers)
    taken = {names.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict()}
    return {tensor.name for tensor in reader.tensors} - taken - {ROPE_FREQUENCIES}


def _tokenizer(file: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers does not carry this flag over; files without it mean yes for SentencePiece vocabularies.
    sentencepiece = metadata.get("tokenizer.ggml.model") == "llama"
    if metadata.get("tokenizer.ggml.add_bos_token", sentencepiece):
        tokenizer.add_bos_token = True
    return tokenizer


def _set_end_of_turn(model: PreTrainedModel, metadata: dict[str, Any]) -> None:
    """Let generation also stop at the token that ends a turn, which transformers does not carry over."""
    end, end_of_turn = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    if end_of_turn is not None and end_of_turn != end and model.generation_config is not None:
        model.generation_config.eos_token_id = [token for token in (end, end_of_turn) if token is not None]


def _metadata(reader: Any) -> dict[str, Any]:
    """The file's key-values, long arrays left out."""
    return {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as piece:
            while block := piece.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()

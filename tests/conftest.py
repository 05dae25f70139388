"""Fixtures of all tests; nothing here or in the tests reaches the network."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _sibling(name: str):  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_models = _sibling("tiny_models")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model_dir(family="llama", seed=0)`: a saved random-weight checkpoint; treat it as read-only."""
    made: dict[tuple[str, int], Path] = {}

    def directory(family: str = "llama", seed: int = 0) -> Path:
        key = (family, seed)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"tiny-{family}-{seed}")
            made[key] = tiny_models.save_tiny_model(family, folder, seed)
        return made[key]

    return directory

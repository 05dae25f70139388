"""A process group of one worker, and the tiny training runs of `train_tiny.py`."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny():
    """The module `train_tiny`."""
    return _load("train_tiny")


@pytest.fixture(scope="session")
def process_group(tmp_path_factory):
    """torch.distributed with this process as its only worker."""
    os.environ.setdefault("LOCAL_RANK", "0")
    store = tmp_path_factory.mktemp("process-group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()

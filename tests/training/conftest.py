"""A process group of one worker."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def process_group(tmp_path_factory):
    """torch.distributed with this process as its only worker."""
    os.environ.setdefault("LOCAL_RANK", "0")
    store = tmp_path_factory.mktemp("process-group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()

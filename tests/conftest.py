"""Fixtures of all tests; nothing here or in the tests reaches the network."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from selfmoe_ray.machines.hardware import gpu_memory
from selfmoe_ray.machines.packages import find_distribution
from tests.tiny_models import save_tiny_model

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under the CUDA set without a GPU (`make test DEVICE=cuda`), all but what may start engines."""
    vllm = find_distribution("vllm")
    if vllm is None or vllm.name != "vllm" or gpu_memory() is not None:
        return
    needs_gpu = pytest.mark.skip(reason="the CUDA set's vLLM needs a GPU, and none is found here")
    for item in items:
        if any(item.get_closest_marker(name) for name in ("slow", "serving", "faults")):
            item.add_marker(needs_gpu)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model_dir(family="llama", seed=0)`: a saved random-weight checkpoint; treat it as read-only."""
    made: dict[tuple[str, int], Path] = {}

    def directory(family: str = "llama", seed: int = 0) -> Path:
        key = (family, seed)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"tiny-{family}-{seed}")
            made[key] = save_tiny_model(family, folder, seed)
        return made[key]

    return directory


class S3Server:
    """An S3 server in this process, which keeps what it holds while it is away."""

    def __init__(self) -> None:
        self._port = 0
        self.come()

    def come(self) -> None:
        """Answer, always at the same address."""
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    def go(self) -> None:
        """Answer no more."""
        self._server.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What clients need."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for all tests; buckets are their own."""
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3Server()
    yield server
    server.go()


@pytest.fixture
def s3_root(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An `s3://` root of the test's own; the environment has what clients of it need."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    import boto3

    bucket = f"runs-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs"

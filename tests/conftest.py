"""Fixtures of all tests; nothing here or in the tests reaches the network."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    """The address of an S3 server in this process."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_root(_s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An `s3://` root of the test's own; the environment has what clients of it need."""
    for name, value in {
        "AWS_ENDPOINT_URL": _s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    bucket = f"runs-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs"

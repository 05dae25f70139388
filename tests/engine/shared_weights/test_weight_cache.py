"""Mixtures over a base that vLLM's weight cache holds."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from vllm.config.load import LoadConfig

from selfmoe_ray.engine.shared_weights import LOAD_FORMAT
from selfmoe_ray.engine.shared_weights.weight_cache import CachedBaseLoader
from selfmoe_ray.errors import UserError

pytestmark = pytest.mark.usefixtures("cpu_engines")
ROOT = Path(__file__).parents[3]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.engine.shared_weights.cached_base", *map(str, arguments)]


@contextmanager
def daemon(base: Path) -> Iterator[str]:
    """The folder of its socket: a short one, as the address of a socket is."""
    with tempfile.TemporaryDirectory() as socket_dir:
        process = subprocess.Popen(command("serve", base, socket_dir), cwd=ROOT)
        try:
            yield socket_dir
        finally:
            process.kill()
            process.wait()


def ask(mixse: Path, socket_dir: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command("answer", mixse, socket_dir), cwd=ROOT, text=True, capture_output=True)


def answers(mixse: Path, socket_dir: str) -> np.ndarray:
    engine = ask(mixse, socket_dir)
    assert engine.returncode == 0, engine.stderr[-3000:]
    return np.array(json.loads(engine.stdout.splitlines()[-1]))


@pytest.mark.serving
@pytest.mark.timeout(900)
def test_mixtures_over_a_daemons_base_answer_as_over_their_own(
    mixse_dir: Callable[..., Path], tiny_model_dir: Callable[..., Path]
) -> None:
    mixtures = mixse_dir("gemma3", k=1), mixse_dir("gemma3", k=2)
    with daemon(tiny_model_dir("gemma3")) as socket_dir:
        found = [answers(mixse, socket_dir) for mixse in mixtures]
    own = [answers(mixse, "") for mixse in mixtures]
    np.testing.assert_allclose(found, own, atol=1e-4)
    np.testing.assert_allclose(found[0][1:], found[1][1:], atol=1e-4)
    assert np.abs(found[0][0] - found[1][0]).max() > 1e-3


@pytest.mark.serving
@pytest.mark.timeout(900)
def test_a_daemon_with_another_base_is_named(
    mixse_dir: Callable[..., Path], tiny_model_dir: Callable[..., Path]
) -> None:
    with daemon(tiny_model_dir("llama")) as socket_dir:
        engine = ask(mixse_dir("gemma3"), socket_dir)
    assert engine.returncode != 0
    wanted = f"on this GPU, `vllm preload --model {tiny_model_dir('gemma3')} --dtype float32` has to run"
    assert "mismatch on fields: ['checkpoint', 'model_arch']" in engine.stderr and wanted in engine.stderr


def test_what_sharing_needs_cannot_be_chosen() -> None:
    config = LoadConfig(load_format=LOAD_FORMAT, model_loader_extra_config={"mode": "copy"})
    with pytest.raises(UserError, match="mode cannot be chosen with mixse_shared"):
        CachedBaseLoader(config)

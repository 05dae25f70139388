"""Engines over one mapped base answer as engines with weights of their own, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

from selfmoe_ray.engine.shared_weights import LOAD_FORMAT
from tests.engine.engines import engine

pytestmark = pytest.mark.usefixtures("cpu_engines")

GATES = ["router", "base", "math", "uniform"]


def answers(llm: Any) -> list[tuple[tuple[int, ...], list[float]]]:
    params = [
        SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=1, extra_args={"mixse_gate": gate})
        for gate in GATES
    ]
    prompts = [{"prompt_token_ids": [0, 5 + index, *range(20, 60)]} for index in range(len(GATES))]
    outputs = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
    return [
        (
            tuple(each.token_ids),
            [step[token].logprob for step, token in zip(each.logprobs, each.token_ids, strict=True)],
        )
        for each in outputs
    ]


def mappings(path: Path) -> dict[int, set[str]]:
    """By process, the access rights with which it maps a file."""
    found: dict[int, set[str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines = (process / "maps").read_text().splitlines()
        except OSError:
            continue
        access = {line.split()[1] for line in lines if line.endswith(str(path))}
        if access:
            found[int(process.name)] = access
    return found


def test_a_compiled_graph_of_merged_weights_is_not_taken_for_shared_ones(mixse_dir: Callable[..., Path]) -> None:
    if not current_platform.device_type:
        pytest.skip("this vLLM finds no device, without which it makes no config")
    folder = mixse_dir("llama")
    own, shared, again = (
        EngineArgs(str(folder), dtype="float32", max_model_len=128, load_format=load_format).create_engine_config()
        for load_format in ("auto", LOAD_FORMAT, LOAD_FORMAT)
    )
    assert shared.compute_hash() == again.compute_hash() != own.compute_hash()


@pytest.mark.slow
@pytest.mark.serving
@pytest.mark.timeout(900)
def test_two_mixtures_over_one_base_map_the_same_weights(mixse_dir: Callable[..., Path], tmp_path: Path) -> None:
    top1, top2 = mixse_dir("gemma3", k=1), mixse_dir("gemma3", k=2)
    with engine(top1, enforce_eager=True) as llm:
        unshared = answers(llm)
    store = tmp_path / "store"
    shared = {"load_format": LOAD_FORMAT, "model_loader_extra_config": {"path": str(store)}}
    with engine(top1, enforce_eager=True, **shared) as first:
        (weights,) = store.glob("*/weights")
        assert_same(answers(first), unshared)
        with engine(top2, **shared) as second:
            assert list(store.glob("*/weights")) == [weights]
            assert sorted(mappings(weights).values()) == [{"r--s"}, {"r--s"}]
            assert_same(answers(second)[1:], unshared[1:])
            assert answers(second)[0] != unshared[0]
        assert list(mappings(weights).values()) == [{"r--s"}]
        assert_same(answers(first), unshared)
    assert list(store.iterdir()) == []


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    for (ids, logprobs), (wanted_ids, wanted_logprobs) in zip(found, wanted, strict=True):
        assert ids == wanted_ids
        assert logprobs == pytest.approx(wanted_logprobs, abs=1e-4)

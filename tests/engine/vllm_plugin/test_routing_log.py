"""The routing that a request asks for is what the transformers model records; the totals count every token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from selfmoe_ray.engine.routing_log import LOG, RoutingLog, TracedRequest, token_texts
from selfmoe_ray.engine.vllm_plugin.recorder import GateRecorder
from selfmoe_ray.mixture.checkpoint import load_mixse
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import MixtureModel
from tests.engine.engines import engine
from tests.tiny_models import make_tokenizer

GATES = {None: Gate.router(1), "top2": Gate.router(2), "base": Gate.off(), "math": Gate.expert(1)}


def prompt(length: int, seed: int) -> list[int]:
    return [0, *torch.randint(4, 320, (length - 1,), generator=torch.Generator().manual_seed(seed)).tolist()]


@pytest.fixture
def llm(mixse_dir: Callable[..., Path], cpu_engines: None) -> Iterator[Any]:
    """An engine whose cache holds fewer tokens than the tests' batch, so that requests are preempted."""
    folder = mixse_dir("llama")
    with engine(folder, num_gpu_blocks_override=40, disable_log_stats=False) as llm:
        llm.folder = folder
        yield llm


def expected(model: MixtureModel, gate: Gate, ids: list[int]) -> torch.Tensor:
    """[layers, tokens, n]"""
    with torch.no_grad(), model.record_gates() as recorded:
        model(input_ids=torch.tensor([ids]), gate=gate)
    return recorded[0][:, 0]


def assert_recorded(model: MixtureModel, gate: Gate, choice: dict[str, Any]) -> None:
    ids = choice["token_ids"]
    wanted = expected(model, gate, ids[:-1])
    assert choice["gates"][-1] is None
    torch.testing.assert_close(torch.tensor(choice["gates"][:-1]), wanted.mean(0), atol=1e-4, rtol=0)
    for found, layer in zip(choice.get("layers", []), wanted, strict=False):
        torch.testing.assert_close(torch.tensor(found[:-1]), layer, atol=1e-4, rtol=0)


@pytest.mark.serving
@pytest.mark.timeout(600)
def test_traces_of_a_busy_batch_equal_transformers(llm: Any) -> None:
    from vllm import SamplingParams

    model = load_mixse(llm.folder)
    tokenizer = llm.get_tokenizer()
    names = list(GATES)
    levels = [None, "mean", "layers"]
    shared = prompt(40, seed=0)
    # A first round leaves the shared prefix in the cache.
    llm.generate([{"prompt_token_ids": shared}], SamplingParams(max_tokens=1), use_tqdm=False)
    before = llm.collective_rpc("mixse_routing_totals")[0]
    jobs = [(names[i % 4], levels[i % 3], shared + prompt(1 + 5 * (i % 24), seed=i)) for i in range(24)]
    params = [
        SamplingParams(
            temperature=0.8,
            seed=1,
            n=2 if level == "layers" else 1,
            max_tokens=30,
            ignore_eos=True,
            extra_args={
                **({"mixse_gate": name} if name else {}),
                **({"mixse_routing": level} if level else {}),
            },
        )
        for name, level, _ in jobs
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for _, _, ids in jobs], params, use_tqdm=False)
    assert sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions") > 0

    # Prompts were computed in parts, which must not change what a seed gives.
    alone = llm.generate([{"prompt_token_ids": jobs[0][2]}], params[0], use_tqdm=False)[0]
    assert alone.outputs[0].token_ids == outputs[0].outputs[0].token_ids

    traces = LOG.fetch_offline(llm, outputs)
    for (name, level, ids), output, trace in zip(jobs, outputs, traces, strict=True):
        if level is None:
            assert trace is None
            continue
        assert trace is not None
        assert (trace["experts"], trace["num_layers"]) == (["knowledge", "math", "coding"], 2)
        assert len(trace["choices"]) == (2 if level == "layers" else 1)
        for choice, answer in zip(trace["choices"], output.outputs, strict=True):
            assert (choice["index"], choice["prompt_tokens"]) == (answer.index, len(ids))
            assert choice["token_ids"] == [*ids, *answer.token_ids]
            assert "".join(choice["tokens"]) == tokenizer.decode(choice["token_ids"])
            assert ("layers" in choice) == (level == "layers")
            assert_recorded(model, GATES[name], choice)
    assert LOG.fetch_offline(llm, outputs[1:2]) == [None]

    totals = llm.collective_rpc("mixse_routing_totals")[0]
    traced_tokens = sum(
        len(choice["gates"]) - 1 for trace in traces if trace is not None for choice in trace["choices"]
    )
    assert totals["tokens"] - before["tokens"] >= traced_tokens
    assert 0 < totals["gated"] < totals["tokens"]
    assert sum(totals["routed"]) == pytest.approx(totals["gated"])

    with pytest.raises(Exception, match="mixse_routing is 'all'; it must be mean or layers"):
        llm.generate([{"prompt_token_ids": shared}], SamplingParams(extra_args={"mixse_routing": "all"}))


@pytest.mark.parametrize("seed", range(20))
def test_token_texts_join_to_the_whole_text(seed: int) -> None:
    tokenizer = make_tokenizer()
    ids = prompt(60, seed)
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids)
    assert token_texts(tokenizer, []) == []


def test_a_recomputed_token_replaces_the_former_and_a_gap_is_nan() -> None:
    recorder = GateRecorder(num_layers=2, max_tokens=8, num_experts=3)
    draw = torch.Generator().manual_seed(0)
    passes = []
    for position, count in ((0, 4), (2, 3), (6, 1)):
        recorder.begin_step(["other", "mine"], [None, "layers"], np.array([9, position]), np.array([2, count]))
        gates = torch.rand(2, 2 + count, 3, generator=draw)
        recorder.record(gates.transpose(0, 1))
        passes.append(gates[:, 2:].numpy())
    found = recorder.take(["mine", "other"])
    assert list(found) == ["mine"]
    np.testing.assert_array_equal(found["mine"][:, :2], passes[0][:, :2])
    np.testing.assert_array_equal(found["mine"][:, 2:5], passes[1])
    assert np.isnan(found["mine"][:, 5]).all()
    np.testing.assert_array_equal(found["mine"][:, 6:], passes[2])
    assert recorder.take(["mine"]) == {}


def test_totals_split_each_token_by_its_gate() -> None:
    recorder = GateRecorder(num_layers=2, max_tokens=8, num_experts=2)
    recorder.begin_step(["a"], [None], np.array([0]), np.array([3]))
    off, first, second, half = [0.0, 0.0], [0.9, 0.0], [0.0, 0.3], [0.2, 0.2]
    recorder.record(torch.tensor([[off, off], [first, second], [half, half], [first, first]]))
    recorder.collect()
    recorder.collect()
    totals = recorder.totals.read()
    assert totals.pop("routed") == pytest.approx([1.0, 1.0])
    assert totals == pytest.approx({"gated": 2.0, "tokens": 3, "entropy_bits": 2.0})


def test_what_nobody_takes_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = GateRecorder(num_layers=1, max_tokens=4, num_experts=2)
    monkeypatch.setattr("selfmoe_ray.engine.vllm_plugin.recorder.MAX_BYTES", 100)
    for number in range(8):
        recorder.begin_step([str(number)], ["mean"], np.array([0]), np.array([4]))
    assert sorted(recorder.take([str(number) for number in range(8)])) == ["5", "6", "7"]


class Engine:
    """An engine client whose worker has one token's gate for every request, and can be asked once."""

    model_config = SimpleNamespace(
        hf_config=SimpleNamespace(mixse={"experts": ["a", "b"]}), hf_text_config=SimpleNamespace(num_hidden_layers=1)
    )

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_tokenizer(self) -> Any:
        return make_tokenizer()

    async def collective_rpc(self, method: str, args: tuple[list[str]]) -> list[Any]:
        assert method == "mixse_take_routing"
        self.asked += args[0]
        await asyncio.sleep(0)
        gate = np.array([[[0.25, 0.0]]], dtype=np.float32)
        return [{name: (list(gate.shape), gate.tobytes()) for name in args[0]}]


def traced(name: str, index: int, token: int, running: dict[str, Any]) -> TracedRequest:
    return TracedRequest(name, index, "mean", [0], SimpleNamespace(output_token_ids=[token]), running)


def test_a_response_is_collected_once_in_the_order_of_its_choices() -> None:
    log, engine = RoutingLog(), Engine()
    running: dict[str, Any] = {"1_cmpl-x-1-ab": None}
    for number in (0, 1):
        for index in (0, 1):
            request = traced(f"{index}_cmpl-x-{number}-ab", index, 10 * number + index, running)
            log.remember(f"cmpl-x-{number}", request)
    log.remember("cmpl-xy-0", traced("cmpl-xy-0-ab", 0, 99, running))

    async def ask() -> None:
        assert await log.fetch(engine, "cmpl-x") is None
        running.clear()
        first, second = await asyncio.gather(log.fetch(engine, "cmpl-x"), log.fetch(engine, "cmpl-x"))
        assert first == second == await log.fetch(engine, "cmpl-x")
        assert first is not None
        assert [choice["index"] for choice in first["choices"]] == [0, 1, 2, 3]
        assert [choice["token_ids"] for choice in first["choices"]] == [[0, 0], [0, 1], [0, 10], [0, 11]]
        assert first["choices"][0]["gates"] == [[0.25, 0.0], None]
        assert len(engine.asked) == 4
        assert await log.fetch(engine, "cmpl-none") is None

    asyncio.run(ask())


def test_a_reused_id_names_the_newest_response() -> None:
    log, engine = RoutingLog(), Engine()

    async def ask(token: int) -> list[list[int]]:
        log.remember("chatcmpl-x", traced(f"chatcmpl-x-{token}", 0, token, {}))
        found = await log.fetch(engine, "chatcmpl-x")
        assert found is not None
        return [choice["token_ids"] for choice in found["choices"]]

    async def both() -> None:
        assert await ask(5) == [[0, 5]]
        assert await ask(6) == [[0, 6]]

    asyncio.run(both())

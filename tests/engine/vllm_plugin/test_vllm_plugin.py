"""vLLM's plugin against the transformers model, on tiny random models in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfmoe_ray.mixture.checkpoint import load_mixse
from selfmoe_ray.mixture.gate import Gate
from selfmoe_ray.mixture.model import MixtureModel
from tests.engine.engines import engine

pytestmark = [pytest.mark.serving, pytest.mark.timeout(1200), pytest.mark.usefixtures("cpu_engines")]

Job = tuple[str | None, list[int]]
PREFIX = [0, *torch.randint(4, 320, (40,), generator=torch.Generator().manual_seed(0)).tolist()]


def gates(model: MixtureModel) -> dict[str | None, Gate]:
    """Every gate that a request can name, some that it makes, as JSON, and the one of a request that names none."""
    experts = {name: Gate.expert(index) for index, name in enumerate(model.spec.experts)}
    ks = {f"top{k}": Gate.router(k) for k in (1, 2, 3)}
    made = {
        '{"math": 0.7, "coding": 0.3}': Gate.constant([0.0, 0.7, 0.3]),
        '{"router": {"only": ["coding", "knowledge"], "k": 2}}': Gate.router(2, among=[0, 2]),
    }
    return {None: model.default_gate, "base": Gate.off(), "uniform": Gate.uniform(), **ks, **made, **experts}


def batch_of(names: list[str | None], size: int) -> list[Job]:
    """Prompts of 41 to 71 tokens, the gates in turn."""
    draw = torch.Generator().manual_seed(2)
    prompts = [PREFIX + torch.randint(4, 320, (i % 31,), generator=draw).tolist() for i in range(size)]
    return [(names[i % len(names)], prompt) for i, prompt in enumerate(prompts)]


def generate(llm: Any, jobs: list[Job], prompt_logprobs: int | None = None) -> list[Any]:
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=12,
            ignore_eos=True,
            logprobs=3,
            prompt_logprobs=prompt_logprobs,
            extra_args={"mixse_gate": json.loads(name) if name.startswith("{") else name} if name else None,
        )
        for name, _ in jobs
    ]
    return llm.generate([{"prompt_token_ids": prompt} for _, prompt in jobs], params, use_tqdm=False)


def assert_same(model: MixtureModel, jobs: list[Job], outputs: list[Any]) -> None:
    """Greedy tokens equal those of the transformers model, and every logprob that vLLM gave is near."""
    for (name, prompt), output in zip(jobs, outputs, strict=True):
        answer = output.outputs[0]
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *answer.token_ids]])
            logprobs = torch.log_softmax(model(input_ids=ids, gate=gates(model)[name]).logits[0], -1)
        assert logprobs[len(prompt) - 1 : -1].argmax(-1).tolist() == list(answer.token_ids), name
        found = [*(output.prompt_logprobs or [None])[1:], *answer.logprobs]
        for position, tokens in enumerate(found, start=len(ids[0]) - len(found) - 1):
            for token, value in tokens.items():
                assert abs(value.logprob - float(logprobs[position, token])) < 1e-3, (name, position)


def assert_engine_matches(llm: Any, folder: Path) -> None:
    """All gates in one batch, alone, and from the prefix cache."""
    model = load_mixse(folder)
    names = list(gates(model))
    jobs = batch_of(names, 32)
    assert_same(model, jobs, generate(llm, jobs, prompt_logprobs=1))
    for job in jobs[:3]:
        assert_same(model, [job], generate(llm, [job]))
    assert llm.reset_prefix_cache()
    same_prompt: list[Job] = [(name, [*PREFIX, 5, 6, 7]) for name in names if name not in ("top1", "top2", "top3")]
    for cached in (0, 32):
        outputs = [generate(llm, [job])[0] for job in same_prompt]
        assert_same(model, same_prompt, outputs)
        assert [output.num_cached_tokens for output in outputs] == [cached] * len(outputs)


@pytest.mark.parametrize(
    ("family", "mixture", "settings"),
    [
        ("llama", {}, {"enforce_eager": False}),
        ("gemma3", {"k": 2}, {"enforce_eager": True}),
        ("phi3", {"router": {"accumulate": False}, "ranks": (48, 8, 48)}, {"enforce_eager": True}),
        (
            "qwen3",
            {"router": {"scope": "shared", "tau": 3.0}},
            {"enforce_eager": True, "tensor_parallel_size": 2},
        ),
        ("glm", {}, {"enforce_eager": True}),
        ("stablelm", {}, {"enforce_eager": True}),
    ],
    ids=[
        "llama compiled",
        "gemma3 k=2",
        "phi3 fused layers, large ranks",
        "qwen3 shared router, two ranks",
        "glm fused in the checkpoint alone",
        "stablelm fused in vLLM without a word",
    ],
)
def test_engine_equals_transformers(
    mixse_dir: Callable[..., Path], family: str, mixture: dict[str, Any], settings: dict[str, Any]
) -> None:
    folder = mixse_dir(family, **mixture)
    with engine(folder, enable_chunked_prefill=True, enable_prefix_caching=True, **settings) as llm:
        assert_engine_matches(llm, folder)
        with pytest.raises(Exception, match=r"mixse_gate is 'poetry'.*knowledge, math, coding"):
            generate(llm, [("poetry", PREFIX)])

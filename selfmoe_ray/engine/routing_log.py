"""The routing of finished requests, as clients see it: collected from the engine, kept for some minutes."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_REQUESTS = 256
MAX_BYTES = 64 * 2**20
MAX_SECONDS = 600.0


@dataclass(frozen=True)
class TracedRequest:
    """A request that asked for its routing, as the API process knows it.

    name: the engine's own id of it. index: its place among the n of its prompt.
    """

    name: str
    index: int
    level: str
    prompt_ids: list[int]
    detokenizer: Any
    running: Any

    @property
    def finished(self) -> bool:
        """Whether its last token is there."""
        return self.name not in self.running


@dataclass(frozen=True)
class TracedChoice:
    """One answer: its prompt's and its own token ids, and the gates [layers or 1, tokens, n] (NaN: not computed)."""

    level: str
    prompt_tokens: int
    token_ids: list[int]
    gates: np.ndarray | None


class RoutingLog:
    """The traced requests of an API process, from their start until some minutes after they were asked for.

    Bounded in number, memory and time; what is beyond it is forgotten, oldest first.
    """

    def __init__(self) -> None:
        self._requests: OrderedDict[str, dict[int, TracedRequest]] = OrderedDict()
        self._taken: OrderedDict[str, tuple[float, asyncio.Future[list[TracedChoice]]]] = OrderedDict()

    def remember(self, external_id: str, request: TracedRequest) -> None:
        """Note a request that the engine has been given; `external_id` is the API's id of its prompt."""
        if request.index == 0:
            # Clients may choose ids: a new request replaces a former one of its name.
            self._requests.pop(external_id, None)
        self._requests.setdefault(external_id, {})[request.index] = request
        while len(self._requests) > MAX_REQUESTS:
            self._requests.popitem(last=False)

    async def fetch(self, engine: Any, response_id: str) -> dict[str, Any] | None:
        """The routing of a response by its id (`cmpl-...`, `chatcmpl-...`), in all its choices.

        engine: vLLM's EngineClient. None where no such response asked for its routing, it has not
        finished, or it is too old. The first call collects it from the engine's worker, so an API
        server calls this when a response ends, before its last chunk.
        """
        requests = self._finished(response_id)
        if requests:
            self._forget()
            task = asyncio.ensure_future(_collect(engine, requests))
            self._taken[response_id] = (time.monotonic(), task)
        if response_id not in self._taken:
            return None
        # Shielded, because a client that leaves must not cancel it for another one.
        choices = await asyncio.shield(self._taken[response_id][1])
        return await asyncio.to_thread(describe, engine.model_config, engine.get_tokenizer(), response_id, choices)

    def fetch_offline(self, llm: Any, outputs: Sequence[Any]) -> list[dict[str, Any] | None]:
        """The routing of what `vllm.LLM.generate` returned, one object a prompt; each can be had once."""
        found = []
        for output in outputs:
            requests = self._finished(output.request_id)
            traces = llm.collective_rpc("mixse_take_routing", args=([each.name for each in requests],))[0]
            choices = [_choice(each, traces) for each in requests]
            described = describe(llm.model_config, llm.get_tokenizer(), output.request_id, choices)
            found.append(described if requests else None)
        return found

    def _finished(self, response_id: str) -> list[TracedRequest]:
        """Takes a response's requests out of the log, in the order of its choices; empty while one runs."""
        # vLLM numbers the prompts of a request, `<id>-<number>` or `<id>_<number>`, where it can have several.
        pattern = re.compile(re.escape(response_id) + r"(?:[-_](\d+))?")
        prompts = [(int(match[1] or 0), name) for name in self._requests if (match := pattern.fullmatch(name))]
        names = [name for _, name in sorted(prompts)]
        requests = [self._requests[name][index] for name in names for index in sorted(self._requests[name])]
        if not all(request.finished for request in requests):
            return []
        for name in names:
            del self._requests[name]
        return requests

    def _forget(self) -> None:
        now = time.monotonic()
        sizes = {name: _nbytes(future) for name, (_, future) in self._taken.items()}
        total = sum(sizes.values())
        for name, (since, _) in list(self._taken.items()):
            if now - since <= MAX_SECONDS and len(self._taken) < MAX_REQUESTS and total <= MAX_BYTES:
                break
            total -= sizes[name]
            del self._taken[name]


async def _collect(engine: Any, requests: list[TracedRequest]) -> list[TracedChoice]:
    # Every tensor-parallel rank routes alike; the first one's answer will do.
    traces = (await engine.collective_rpc("mixse_take_routing", args=([each.name for each in requests],)))[0]
    return [_choice(request, traces) for request in requests]


def _choice(request: TracedRequest, traces: dict[str, tuple[list[int], bytes]]) -> TracedChoice:
    gates = None
    if request.name in traces:
        shape, values = traces[request.name]
        gates = np.frombuffer(values, dtype=np.float32).reshape(shape)
    ids = [*request.prompt_ids, *request.detokenizer.output_token_ids]
    return TracedChoice(request.level, len(request.prompt_ids), ids, gates)


def _nbytes(future: asyncio.Future[list[TracedChoice]]) -> int:
    if not future.done() or future.cancelled() or future.exception():
        return 0
    return sum(8 * len(choice.token_ids) + getattr(choice.gates, "nbytes", 0) for choice in future.result())


def describe(model_config: Any, tokenizer: Any, response_id: str, choices: list[TracedChoice]) -> dict[str, Any]:
    """The `mixse_routing` object of a response.

    {"id", "experts": [n names], "num_layers", "choices": [{"index", "prompt_tokens", "tokens": texts
    that join to the whole, "token_ids", "gates": the mean over layers, [n] a token, "layers": [layers]
    [tokens][n], where asked for}]}. A token that was never fed to the model, as the last one of an
    answer, has null for its gates.
    """
    described = []
    for index, choice in enumerate(choices):
        gates: np.ndarray = np.full((1, len(choice.token_ids), 1), np.nan, dtype=np.float32)
        if choice.gates is not None:
            fed = choice.gates[:, : len(choice.token_ids)]
            missing = len(choice.token_ids) - fed.shape[1]
            gates = np.pad(fed, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan)
        described.append(
            {
                "index": index,
                "prompt_tokens": choice.prompt_tokens,
                "tokens": token_texts(tokenizer, choice.token_ids),
                "token_ids": choice.token_ids,
                "gates": _values(gates.mean(0)),
                **({"layers": [_values(layer) for layer in gates]} if choice.level == "layers" else {}),
            }
        )
    return {
        "id": response_id,
        "experts": list(model_config.hf_config.mixse["experts"]),
        "num_layers": model_config.hf_text_config.num_hidden_layers,
        "choices": described,
    }


def _values(gates: np.ndarray) -> list[list[float] | None]:
    known = ~np.isnan(gates).any(-1)
    rows = gates.astype(np.float64).round(5).tolist()
    return [row if there else None for row, there in zip(rows, known.tolist(), strict=True)]


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Each token's text, special ones included; they join to the text of the whole.

    Where a character is spread over several tokens, the last of them has it and the others are empty.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [tokenizer.decode([token]) for token in ids]
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    texts = [stream.step(backend, token) for token in ids]
    unfinished = next((count for count, text in enumerate(reversed(texts)) if text is not None), len(texts))
    if unfinished:
        texts[-1] = backend.decode(ids[-unfinished:], skip_special_tokens=False)
    return [text or "" for text in texts]


LOG = RoutingLog()

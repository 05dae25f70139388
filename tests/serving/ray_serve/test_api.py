"""The OpenAI API, through Serve's proxy, with the official client."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from selfmoe_ray.domains.prompt import format_prompt

pytestmark = [pytest.mark.serving, pytest.mark.timeout(600)]

PROMPT = "What is the capital of France?"
NAMES = {"tiny": "router", "tiny/base": "base", **{f"tiny/{name}": name for name in ("knowledge", "math", "coding")}}


def complete(client: openai.OpenAI, model: str = "tiny", **options: Any) -> Any:
    return client.completions.create(
        **{"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **options}
    )


def chat(client: openai.OpenAI, model: str = "tiny", **options: Any) -> Any:
    asked = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12, "temperature": 0}
    return client.chat.completions.create(**{**asked, **options})


def test_models_are_listed_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(NAMES)
    assert client.models.retrieve("tiny/math").id == "tiny/math"


def test_names_are_gates(client: openai.OpenAI) -> None:
    answers = {}
    for name, gate in NAMES.items():
        named = complete(client, name, logprobs=1)
        gated = complete(client, extra_body={"vllm_xargs": {"mixse_gate": gate}}, logprobs=1)
        assert named.model == name and gated.model == "tiny"
        assert named.choices[0].text == gated.choices[0].text
        answers[name] = tuple(named.choices[0].logprobs.token_logprobs)
    assert len(set(answers.values())) == len(NAMES)


def test_a_gate_in_the_request_goes_before_the_name(client: openai.OpenAI) -> None:
    override = {"vllm_xargs": {"mixse_gate": "base"}}
    assert (
        complete(client, "tiny/math", extra_body=override).choices[0].text
        == complete(client, "tiny/base").choices[0].text
    )


@pytest.mark.parametrize("model", ["tiny", "tiny/math"])
def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, model: str) -> None:
    pieces = list(complete(client, model, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == complete(client, model).choices[0].text
    assert {piece.model for piece in pieces} == {model} and pieces[-1].choices[0].finish_reason == "length"
    pieces = list(chat(client, model, stream=True))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert len(pieces) > 6 and text == chat(client, model).choices[0].message.content


def test_chat_is_the_training_prompt(client: openai.OpenAI) -> None:
    told = complete(client, prompt=format_prompt(PROMPT, ""))
    assert chat(client).choices[0].message.content == told.choices[0].text
    assert chat(client).usage.prompt_tokens == told.usage.prompt_tokens


def test_logprobs_stop_n_and_seed(client: openai.OpenAI) -> None:
    logprobs = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(logprobs) == 12 and all(len(token.top_logprobs) == 3 for token in logprobs)
    whole = complete(client).choices[0].text
    stopped = complete(client, stop=[whole[2]])
    assert stopped.choices[0].text == whole[: whole.index(whole[2])] and stopped.choices[0].finish_reason == "stop"
    draws = complete(client, n=3, temperature=1, seed=7)
    assert [choice.index for choice in draws.choices] == [0, 1, 2]
    assert len({choice.text for choice in draws.choices}) == 3
    assert [choice.text for choice in complete(client, n=3, temperature=1, seed=7).choices] == [
        choice.text for choice in draws.choices
    ]


def test_routing_on_request_and_afterwards(client: openai.OpenAI, server: Any) -> None:
    asked = {"extra_body": {"vllm_xargs": {"mixse_routing": "mean"}}}
    answer = complete(client, **asked)
    routing = answer.model_extra["mixse_routing"]
    assert routing["id"] == answer.id and routing["experts"] == ["knowledge", "math", "coding"]
    assert len(routing["choices"][0]["gates"]) == routing["choices"][0]["prompt_tokens"] + 12
    *_, last = chat(client, stream=True, **asked)
    assert last.choices == [] and last.model_extra["mixse_routing"]["id"] == last.id
    assert "mixse_routing" not in complete(client).model_extra
    with server.http() as http:
        assert http.get(f"/v1/mixse/routing/{answer.id}").json() == routing
        assert http.get("/v1/mixse/routing/cmpl-unknown").status_code == 404


def test_the_example_client_shows_answers_and_gates(server: Any) -> None:
    example = Path(__file__).parents[3] / "examples" / "client.py"
    done = subprocess.run(
        [sys.executable, example, "--url", server.url, "--model", "tiny", "--task", PROMPT],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OPENAI_API_KEY": server.key},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tiny/base: " in done.stdout and "\ntiny: " in done.stdout
    shown = re.findall(r" (?:knowledge|math|coding) [01]\.\d\d$", done.stdout, re.MULTILINE)
    # Of an answer of at most 60 tokens, all but its last.
    assert 1 <= len(shown) <= 59


def test_tokenize_metrics_health_and_the_playground(server: Any) -> None:
    with server.http() as http:
        tokens = http.post("/tokenize", json={"model": "tiny/math", "prompt": PROMPT}).json()["tokens"]
        assert http.post("/detokenize", json={"model": "tiny", "tokens": tokens[1:]}).json() == {"prompt": PROMPT}
        metrics = http.get("/metrics").text
        assert "vllm:num_requests_running" in metrics and 'mixse_expert_tokens_total{expert="math"' in metrics
        about = http.get("/v1/mixse").json()
        assert about["experts"] == ["knowledge", "math", "coding"] and about["num_layers"] == 2
    with server.http(key=None) as http:
        assert http.get("/health").status_code == 200
        page = http.get("/")
        assert "playground" in page.text and "default-src 'none'" in page.headers["content-security-policy"]
        for name in re.findall(r'(?:src|href)="([\w./]+)"', page.text):
            assert http.get(f"/{name}").status_code == 200


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda c: complete(c, "tiny/poetry"), openai.NotFoundError, "known: tiny, tiny/base"),
        (lambda c: complete(c, max_tokens=151), openai.BadRequestError, "max_tokens is 151.* at most 150"),
        (lambda c: chat(c, max_completion_tokens=151), openai.BadRequestError, "max_completion_tokens is 151"),
        (lambda c: complete(c, n=5), openai.BadRequestError, "n is 5"),
        (lambda c: complete(c, prompt=["a"] * 5), openai.BadRequestError, "5 prompts"),
        (lambda c: complete(c, prompt="word " * 400), openai.BadRequestError, "maximum context length is 256"),
        (lambda c: complete(c, prompt=[5] * 300), openai.BadRequestError, "maximum context length is 256"),
        (lambda c: complete(c, prompt="a" * 70_000), openai.APIStatusError, "over 65536 bytes"),
        (
            lambda c: complete(c, extra_body={"vllm_xargs": {"mixse_gate": "x"}}),
            openai.BadRequestError,
            "must be router",
        ),
        (lambda c: complete(c, extra_body={"vllm_xargs": {"gate": "x"}}), openai.BadRequestError, "unknown gate"),
        (lambda c: complete(c, extra_body={"use_beam_search": True}), openai.BadRequestError, "not served"),
        (lambda c: chat(c, extra_body={"chat_template": "{{ 1 }}"}), openai.BadRequestError, "chat template"),
    ],
)
def test_what_is_refused_and_why(
    client: openai.OpenAI, ask: Callable[[openai.OpenAI], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(client)


def test_without_max_tokens_the_limit_ends_a_chat(client: openai.OpenAI) -> None:
    endless = chat(client, max_tokens=None, extra_body={"ignore_eos": True})
    assert endless.usage.completion_tokens == 150 and endless.choices[0].finish_reason == "length"


@pytest.mark.parametrize("key", ["wrong", "key-of-the-test", ""])
def test_a_wrong_key_is_refused_everywhere(server: Any, key: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        complete(server.openai(key or "x"))
    with server.http(key) as http:
        for path in ("/metrics", "/v1/models", "/openapi.json", "/v1/mixse", "/tokenize"):
            assert http.get(path).status_code == 401


def test_other_routes_of_vllm_are_not_there(server: Any) -> None:
    with server.http() as http:
        for path in ("/collective_rpc", "/sleep", "/start_profile", "/v1/load_lora_adapter", "/v1/responses", "/pause"):
            assert http.post(path, json={}).status_code in (404, 405), path
        for path in ("/version", "/load", "/server_info", "/docs", "/redoc"):
            assert http.get(path).status_code == 404, path


def test_no_error_tells_of_the_machine(server: Any) -> None:
    leaks = re.compile(r"Traceback|/site-packages|\.py|pid|actor|0x[0-9a-f]{6}|127\.0\.0\.1|vllm/|/tmp", re.IGNORECASE)
    with server.http() as http:
        answers = [
            http.get("/nowhere"),
            http.put("/v1/completions"),
            http.post("/v1/completions", content=b"{"),
            http.post("/v1/completions", content=b"{", headers={"content-type": "application/json"}),
            http.post("/v1/completions", json={"model": "tiny", "prompt": {"a": 1}}),
            http.post("/v1/completions", json={"model": "tiny", "prompt": [-1]}),
            http.post("/v1/completions", json={"model": "tiny", "prompt": [10**6]}),
            http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "logit_bias": {"9999": 1}}),
            http.post("/v1/chat/completions", json={"model": "tiny", "messages": [{"role": "user"}]}),
            http.post("/v1/chat/completions", json={"model": "tiny", "messages": []}),
            http.post("/detokenize", json={"model": "tiny", "tokens": [10**9]}),
        ]
    for answer in answers:
        assert not leaks.search(answer.text), answer.text
        assert answer.is_success or answer.json()["error"]["code"] == answer.status_code < 500, answer.text


def test_no_origin_may_read_answers(server: Any) -> None:
    with server.http() as http:
        answer = http.get("/v1/models", headers={"Origin": "https://elsewhere.example"})
        assert answer.is_success and "access-control-allow-origin" not in answer.headers

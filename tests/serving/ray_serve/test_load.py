"""More requests than one replica takes: a full queue, a second replica, and clients that leave."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.serving, pytest.mark.timeout(900)]


def running(server: Any) -> float:
    """How many requests the engine works on, by its own metrics."""
    with server.http() as http:
        lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running{"))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(server: Any, stream: bool) -> None:
    body = {"prompt": "a", "max_tokens": 150, "n": 4, "temperature": 1, "ignore_eos": True, "stream": stream}
    with server.http(timeout=0.5) as http:
        try:
            with http.stream("POST", "/v1/completions", json=body) as answer:
                next(answer.iter_lines())
        except Exception as error:
            assert "Timeout" in type(error).__name__, error
    server.wait_for(lambda: running(server) == 0, 10)


def test_a_full_queue_answers_503_with_retry_after(server: Any, load: Any) -> None:
    server.deploy(max_ongoing_requests=2, max_queued_requests=3)
    outcomes = load.together(clients=16, max_tokens=100)
    refused = [outcome for outcome in outcomes if outcome.status != 200]
    assert {outcome.status for outcome in outcomes} == {200, 503} and not any(outcome.broken for outcome in outcomes)
    for outcome in refused:
        assert json.loads(outcome.text)["error"]["type"] == "ServiceUnavailableError" and outcome.retry_after == "2"
    patient = server.openai(max_retries=8)
    assert patient.completions.create(model="tiny", prompt="a", max_tokens=1).choices


def test_load_starts_a_second_replica_and_its_end_stops_it(server: Any, load: Any) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "look_back_period_s": 2}
    server.deploy(
        autoscaling_config={**scaling, "upscale_delay_s": 1, "downscale_delay_s": 3, "metrics_interval_s": 0.5}
    )
    assert server.replicas() == 1
    with load.steady(clients=6, max_tokens=60) as outcomes:
        server.wait_for(lambda: server.replicas() == 2, 180)
        answered = len(outcomes)
        server.wait_for(lambda: len(outcomes) > answered + 24, 60)
    before = len(outcomes)
    # One client is not enough for two replicas: one of them goes, under its stream.
    with load.steady(clients=1, max_tokens=150) as more:
        server.wait_for(lambda: server.replicas() == 1 and server.replicas("STOPPING") == 0, 120)
    outcomes += more
    assert before > 24 and more
    assert {outcome.status for outcome in outcomes} == {200} and not any(outcome.broken for outcome in outcomes)
    assert all(outcome.done for outcome in outcomes if outcome.text.startswith("data:"))
    server.wait_for(lambda: len(server.processes("VLLM::EngineCore")) == 1, 10)


def test_without_requests_no_replica_stays_and_the_next_request_waits_for_one(server: Any) -> None:
    scaling = {"min_replicas": 0, "max_replicas": 1, "target_ongoing_requests": 2, "look_back_period_s": 2}
    delays = {"upscale_delay_s": 0, "downscale_delay_s": 2, "downscale_to_zero_delay_s": 2, "metrics_interval_s": 0.5}
    server.deploy(autoscaling_config={**scaling, **delays})
    server.wait_for(lambda: server.replicas() == 0 and server.replicas("STOPPING") == 0, 120)
    assert not server.processes("VLLM::EngineCore")
    answer = server.openai(timeout=300).completions.create(model="tiny", prompt="a", max_tokens=4)
    assert answer.choices[0].text
    assert server.replicas() == 1

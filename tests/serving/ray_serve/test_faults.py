"""What clients see when an engine or a replica is killed, and what is there afterwards."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from selfmoe_ray.machines.processes import is_alive

pytestmark = [pytest.mark.serving, pytest.mark.timeout(900)]

VICTIMS = {"the engine core": "VLLM::EngineCore", "a replica": "ray::ServeReplica:mixse:Mixse"}


@pytest.fixture
def one_at_a_time(server: Any) -> None:
    """A replica with room for half of the clients; the others queue in the proxy."""
    server.deploy(max_ongoing_requests=4, max_queued_requests=16)


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_process_is_replaced_and_every_client_hears(server: Any, load: Any, victim: str) -> None:
    right = load.together(clients=1, max_tokens=100)[0]
    right_stream = load.together(clients=1, max_tokens=100, stream=True)[0]
    assert right.status == 200 and right_stream.done
    engine = server.processes("VLLM::")
    (victim_process,) = server.processes(VICTIMS[victim])
    with load.steady(clients=8, max_tokens=100) as outcomes:
        # In the midst of an answer: a request that no replica has taken yet waits for the next one, and is answered.
        server.wait_for(lambda: len(outcomes) >= 8 and bool(load.streaming), 60)
        victim_process.kill()
        after_kill = len(outcomes)
        # Until the new engine has answered, with the clients never letting off.
        server.wait_for(lambda: sum(each.status == 200 and not each.error for each in outcomes[after_kill:]) >= 24, 240)
    assert {outcome.status for outcome in outcomes} <= {200, 503}
    assert not any(outcome.broken for outcome in outcomes)
    kinds = Counter((outcome.status, outcome.error) for outcome in outcomes)
    assert any(outcome.error for outcome in outcomes), (after_kill, kinds)
    for outcome in outcomes:
        if outcome.text.startswith("data:"):
            assert outcome.done or outcome.error
            if outcome.done:
                assert texts(outcome.text) == texts(right_stream.text)
        elif outcome.status == 200:
            assert texts(outcome.text) == texts(right.text)
        else:
            assert json.loads(outcome.text)["error"]["code"] == 503 and outcome.retry_after == "2"
    server.wait_for(lambda: not any(is_alive(process.pid) for process in engine), 10)


def texts(answer: str) -> str:
    """The text of an answer or of a stream."""
    bodies = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith(("data: {", "{"))]
    return "".join(choice["text"] for body in bodies for choice in json.loads(body)["choices"])

"""Requests drawn from the served OpenAPI schema, valid and not: none may be a server error."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

pytestmark = [pytest.mark.serving, pytest.mark.timeout(900)]

BODIES = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
VALID, INVALID = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
# Any text is a valid response id.
CASES = [*((path, mode) for path in BODIES for mode in (VALID, INVALID)), ("/v1/mixse/routing/{response_id}", VALID)]


@pytest.fixture(scope="module")
def operations(server: Any) -> dict[str, Any]:
    """What the server says of itself, by path."""
    with server.http() as http:
        schema = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
    return {found.ok().path: found.ok() for found in schema.get_all_operations()}


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_no_request_is_a_server_error(
    server: Any, operations: dict[str, Any], path: str, mode: schemathesis.GenerationMode
) -> None:
    @settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operations[path].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            # A drawn name would seldom be one that is served.
            case.body["model"] = "tiny"
        answer = case.call(base_url=server.url, headers={"Authorization": f"Bearer {server.key}"}, timeout=60)
        assert answer.status_code < 500, case.as_curl_command()

    ask()


def test_the_server_is_still_well(server: Any, client: Any) -> None:
    assert server.replicas() == 1
    assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices

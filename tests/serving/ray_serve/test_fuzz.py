"""Requests drawn from the served OpenAPI schema, valid and not: none may be a server error."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

pytestmark = [pytest.mark.serving, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def served_schema(server: Any) -> Any:
    """What the server says of itself."""
    with server.http() as http:
        return schemathesis.openapi.from_dict(http.get("/openapi.json").json())


schema = schemathesis.pytest.from_fixture("served_schema")


@schema.parametrize()
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_server_error(server: Any, case: schemathesis.Case) -> None:
    headers = {"Authorization": f"Bearer {server.key}"}
    case.call_and_validate(base_url=server.url, headers=headers, checks=[not_a_server_error], timeout=60)


def test_the_server_is_still_well(server: Any, client: Any) -> None:
    assert server.replicas() == 1
    assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices

"""The routing of finished requests, for their own response and for later questions."""

from __future__ import annotations

from typing import Any

from selfmoe_ray.serving.routing import LOG


class RoutingRecords:
    """What this process's engine remembers."""

    def __init__(self, client: Any):
        self.client = client

    async def take(self, response_id: str) -> dict[str, Any] | None:
        """The routing of a response that just ended; None where there is none."""
        return await LOG.fetch(self.client, response_id)

    async def find(self, response_id: str) -> dict[str, Any] | None:
        """The routing of a response of the last minutes; None where there is none."""
        return await LOG.fetch(self.client, response_id)

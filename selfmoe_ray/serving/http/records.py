"""The routing of finished requests, for their own response and for later questions."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from typing import Any

from selfmoe_ray.engine.routing_log import LOG

MAX_BYTES = 64 * 2**20
MAX_SECONDS = 600.0


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


class RecordStore:
    """Routing of the last minutes by response id, bounded in memory; the oldest goes first."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_seconds: float = MAX_SECONDS):
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds
        self.nbytes = 0
        self.records: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def put(self, response_id: str, routing: dict[str, Any]) -> None:
        """Keep a response's routing; a former one of the same id goes."""
        self._drop(response_id)
        record = json.dumps(routing).encode()
        self.records[response_id] = (time.monotonic(), record)
        self.nbytes += len(record)
        while self.records and (self.nbytes > self.max_bytes or self._age() > self.max_seconds):
            self._drop(next(iter(self.records)))

    def get(self, response_id: str) -> dict[str, Any] | None:
        """A response's routing, or None."""
        since, record = self.records.get(response_id, (0.0, b""))
        return json.loads(record) if record and time.monotonic() - since <= self.max_seconds else None

    def _age(self) -> float:
        return time.monotonic() - next(iter(self.records.values()))[0]

    def _drop(self, response_id: str) -> None:
        _, record = self.records.pop(response_id, (0.0, b""))
        self.nbytes -= len(record)

"""The admin worker of a server under test, asked as operators and their machines do."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from tests.support.client import Response, request
from tests.support.http1_client import Http1Connection
from tests.support.metrics import Metrics
from tests.support.server import PATIENCE, Server

WHERE = re.compile(r"admin listens on http://([\d.]+):(\d+)")


class Admin:
    """Where the server's admin worker listens, TCP."""

    def __init__(self, server: Server) -> None:
        self.server = server
        match = WHERE.search(server.log.text)
        assert match is not None, server.log.text
        self.host, self.port = match[1], int(match[2])

    async def get(self, path: str, *, method: str = "GET") -> Response:
        connection = await Http1Connection.connect(self.host, self.port)
        try:
            async with asyncio.timeout(PATIENCE):
                return await request(connection, method, path)
        finally:
            await connection.close()

    async def status(self) -> dict[str, Any]:
        response = await self.get("/status")
        assert response.status == 200
        found: dict[str, Any] = orjson.loads(response.body)
        return found

    async def metrics(self) -> Metrics:
        response = await self.get("/metrics")
        assert response.status == 200
        return Metrics(response.body.decode())

    async def wait_ready(self) -> None:
        await self.server.wait_line(r"admin pid=\d+ gen=\d+: ready")

    async def wait_status(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first status of which this is true."""
        deadline = time.monotonic() + PATIENCE
        while not condition(status := await self.status()):
            assert time.monotonic() < deadline, status
        return status

    async def wait_verdict(self, path: str, status: int) -> str:
        """What is said with this status, once it is."""
        deadline = time.monotonic() + PATIENCE
        while (response := await self.get(path)).status != status:
            assert time.monotonic() < deadline, response
        return response.body.decode().rstrip()

    async def refusals(self) -> dict[str, float]:
        """What was refused so far, by reason; without those that were not."""
        counts = (await self.metrics()).by("asgiri_refusals_total", "reason")
        return {reason: count for reason, count in counts.items() if count}

    async def wait_refusals(self, expected: Mapping[str, float]) -> None:
        """Exactly this was refused since the server began, besides packets that came late. Counts
        are published now and then."""
        deadline = time.monotonic() + PATIENCE
        while True:
            told = await self.refusals()
            told.pop("quic_retired_connection_id", None)
            if told == expected:
                return
            assert time.monotonic() < deadline, told
            await asyncio.sleep(0.05)

    async def wait_more_refusals(self, before: Mapping[str, float], **more: int) -> None:
        """At least so many more of each were refused than before."""
        deadline = time.monotonic() + PATIENCE
        while True:
            now = await self.refusals()
            grown = {reason: now.get(reason, 0) - before.get(reason, 0) for reason in more}
            if all(grown[reason] >= more[reason] for reason in more):
                return
            assert time.monotonic() < deadline, (grown, more)
            await asyncio.sleep(0.05)

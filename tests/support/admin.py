"""The admin worker of a server under test, asked as operators and their machines do."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
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

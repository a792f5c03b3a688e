"""One request on a connection of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from tests.support.client import FieldsIn, Response, request
from tests.support.http1_client import Http1Connection
from tests.support.server import Server
from tests.support.stream import ByteStream


@contextlib.asynccontextmanager
async def http1(server: Server, host: str = "") -> AsyncIterator[Http1Connection]:
    """A connection to the server, closed at the end."""
    tls = server.client_context("http/1.1")
    connection = await Http1Connection.connect(host or server.host, server.port, tls=tls)
    try:
        yield connection
    finally:
        await connection.close()


async def wait_refusing(server: Server) -> None:
    """Return when nobody listens any more."""
    while True:
        try:
            (await ByteStream.connect(server.host, server.port)).close()
        except ConnectionError:
            return


async def fetch(
    server: Server,
    path: str = "/hello",
    *,
    method: str = "GET",
    headers: FieldsIn = (),
    body: bytes = b"",
) -> Response:
    async with http1(server) as connection:
        return await request(connection, method, path, headers, body)

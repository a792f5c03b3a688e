"""Peers that take their time, against timeouts made short for the test."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from tests.support.client import read_response
from tests.support.http1_client import Http1Connection
from tests.support.remote_app import remote_apps
from tests.support.server import Server, serve

pytestmark = pytest.mark.slow

SHORT = 0.3
SLACK = 3.0
"""A busy machine's. Never shorter than asked, and not much longer."""


@pytest.fixture(params=["httptools", "h11"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    async with serve(
        workers=1,
        http1_parser=request.param,
        header_timeout=SHORT,
        keep_alive=SHORT,
        body_timeout=SHORT,
    ) as server:
        yield server


async def connect(server: Server) -> Http1Connection:
    return await Http1Connection.connect("127.0.0.1", server.port)


async def test_timeouts(server: Server):
    """One test for all: starting servers costs more than they do."""
    await a_connection_that_says_nothing_is_closed(server)
    await half_a_head_is_answered_with_408(server)
    await an_idle_connection_is_closed(server)
    await a_body_that_stops_is_a_disconnect(server)


async def a_connection_that_says_nothing_is_closed(server: Server) -> None:
    connection = await connect(server)
    begin = time.monotonic()
    assert (await connection.stream.read_to_end()).startswith(b"HTTP/1.1 408 ")
    assert SHORT * 0.9 < time.monotonic() - begin < SHORT + SLACK
    await connection.close()


async def half_a_head_is_answered_with_408(server: Server) -> None:
    connection = await connect(server)
    begin = time.monotonic()
    await connection.send(b"GET /hello HTTP/1.1\r\nhost: a\r\n")
    response = await connection.response()
    assert (response.status, response.header("connection")) == (408, "close")
    assert SHORT * 0.9 < time.monotonic() - begin < SHORT + SLACK
    await connection.wait_closed()
    await connection.close()


async def an_idle_connection_is_closed(server: Server) -> None:
    connection = await connect(server)
    assert (await read_response(await connection.start("GET", "/hello"))).status == 200
    begin = time.monotonic()
    await connection.wait_closed()
    assert SHORT * 0.9 < time.monotonic() - begin < SHORT + SLACK
    await connection.close()


async def a_body_that_stops_is_a_disconnect(server: Server) -> None:
    connection = await connect(server)
    async with remote_apps() as apps:
        exchange = await connection.start("POST", "/", apps.headers, body=None)
        call = await apps.wait_call()
        await exchange.send_body(b"part")
        assert (await call.receive())["body"] == b"part"
        assert (await call.receive())["type"] == "http.disconnect"
        call.finish()
        assert (await exchange.head()).status == 408
    await connection.close()

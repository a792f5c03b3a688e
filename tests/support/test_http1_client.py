"""The strict HTTP/1.1 client against servers that send canned bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.support.client import ExchangeFailed, FailureKind, ServerViolation, request
from tests.support.http1_client import Http1Connection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:  one \r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nx: y\r\n\r\n"
)


class CannedServer:
    def __init__(self, parts: tuple[bytes, ...]) -> None:
        self.parts = parts
        self.received = b""
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received = await reader.readuntil(b"\r\n\r\n")
        for part in self.parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()


@contextlib.asynccontextmanager
async def canned(*parts: bytes) -> AsyncIterator[tuple[CannedServer, Http1Connection]]:
    canned_server = CannedServer(parts)
    server = await asyncio.start_server(canned_server.serve, "127.0.0.1", 0)
    canned_server.port = server.sockets[0].getsockname()[1]
    connection = await Http1Connection.connect("127.0.0.1", canned_server.port)
    try:
        yield canned_server, connection
    finally:
        await connection.close()
        server.close()
        await server.wait_closed()


async def test_a_request_is_written_as_asked():
    async with canned(OK) as (server, connection):
        await request(connection, "POST", "/p?q=1", [("X-A", "1")], b"body")
        assert server.received == (
            b"POST /p?q=1 HTTP/1.1\r\nhost: localhost\r\nx-a: 1\r\ncontent-length: 4\r\n\r\n"
        )


async def test_a_response_is_read_whole():
    async with canned(OK) as (_, connection):
        response = await request(connection, "GET", "/")
        assert (response.status, response.body) == (200, b"hello")
        assert response.header("X-A") == "one"


@pytest.mark.parametrize("cut", range(1, len(CHUNKED)))
async def test_what_is_read_does_not_depend_on_how_bytes_arrive(cut: int):
    async with canned(CHUNKED[:cut], CHUNKED[cut:]) as (_, connection):
        response = await request(connection, "GET", "/")
        assert (response.body, response.trailers) == (b"hello", [(b"x", b"y")])
        await connection.wait_closed()


async def test_informational_responses_are_kept_apart():
    async with canned(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n", OK) as (_, connection):
        exchange = await connection.start("GET", "/")
        assert (await exchange.wait_informational()).header("link") == "a"
        assert (await exchange.head()).status == 200
        with pytest.raises(ServerViolation, match="no informational"):
            await exchange.wait_informational()


async def test_head_204_and_304_have_no_body():
    for method, status in (("HEAD", 200), ("GET", 304)):
        async with canned(b"HTTP/1.1 %d x\r\ncontent-length: 9\r\n\r\n" % status) as (
            _,
            connection,
        ):
            assert (await request(connection, method, "/")).body == b""
    async with canned(b"HTTP/1.1 204 x\r\n\r\n") as (_, connection):
        assert (await request(connection, "GET", "/")).body == b""


async def test_without_length_the_body_ends_with_the_connection():
    async with canned(b"HTTP/1.1 200 x\r\n\r\nab", b"c") as (_, connection):
        assert (await request(connection, "GET", "/")).body == b"abc"


@pytest.mark.parametrize("whole", [OK, CHUNKED])
async def test_a_response_that_is_cut_short_fails(whole: bytes):
    for cut in (5, len(whole) - 1):
        async with canned(whole[:cut]) as (_, connection):
            with pytest.raises(ExchangeFailed) as failure:
                await request(connection, "GET", "/")
            assert failure.value.kind is FailureKind.CLOSED


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 204 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    ],
)
async def test_what_a_server_must_not_send_is_a_violation(response: bytes):
    async with canned(response) as (_, connection):
        with pytest.raises(ServerViolation):
            await request(connection, "GET", "/")


async def test_bytes_after_the_response_are_a_violation():
    async with canned(OK, b"extra") as (_, connection):
        await request(connection, "GET", "/")
        with pytest.raises(ServerViolation, match="extra"):
            await connection.wait_closed()

"""The HTTP/2 client against a small server on h2."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import h2.config
import h2.connection
import h2.events
import pytest

from tests.support.client import ExchangeFailed, FailureKind, ServerViolation, request
from tests.support.http2_client import Http2Connection

Answer = Callable[[h2.connection.H2Connection, h2.events.Event], None]


class SmallServer:
    """Calls `answer` for each event and writes what h2 then has to say."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.done = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        protocol.initiate_connection()
        writer.write(protocol.data_to_send())
        with contextlib.suppress(ConnectionError):  # a client may abort
            while data := await reader.read(65536):
                for event in protocol.receive_data(data):
                    self.answer(protocol, event)
                writer.write(protocol.data_to_send())
        writer.close()
        self.done.set()


@contextlib.asynccontextmanager
async def connected(answer: Answer, stream_window: int = 65535) -> AsyncIterator[Http2Connection]:
    small = SmallServer(answer)
    server = await asyncio.start_server(small.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = await Http2Connection.connect("127.0.0.1", port, stream_window=stream_window)
    try:
        yield connection
    finally:
        await connection.close()
        await small.done.wait()
        server.close()
        await server.wait_closed()


def hello(protocol: h2.connection.H2Connection, event: h2.events.Event) -> None:
    if isinstance(event, h2.events.RequestReceived):
        protocol.send_headers(event.stream_id, [(b":status", b"103"), (b"link", b"a")])
        protocol.send_headers(event.stream_id, [(b":status", b"200"), (b"x", b"y")])
        protocol.send_data(event.stream_id, b"hello")
        protocol.send_headers(event.stream_id, [(b"x-digest", b"1")], end_stream=True)


async def test_a_response_is_read_whole():
    async with connected(hello) as connection:
        response = await request(connection, "GET", "/")
        assert (response.status, response.body, response.header("x")) == (200, b"hello", "y")
        assert response.trailers == [(b"x-digest", b"1")]
        assert [head.status for head in response.informational] == [103]


async def test_exchanges_go_on_side_by_side():
    async with connected(hello) as connection:
        exchanges = [await connection.start("GET", "/") for _ in range(5)]
        for exchange in reversed(exchanges):
            assert await exchange.read() == b"hello"


async def test_body_waits_for_the_servers_window():
    received = bytearray()

    def upload(protocol: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            received.extend(event.data)
            protocol.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if isinstance(event, h2.events.StreamEnded):
            protocol.send_headers(event.stream_id, [(b":status", b"204")], end_stream=True)

    async with connected(upload) as connection:
        assert (await request(connection, "POST", "/", body=b"x" * 200_000)).status == 204
        assert len(received) == 200_000


async def test_window_is_given_back_only_for_what_was_read():
    opened: list[int] = []

    def fill(protocol: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            protocol.send_headers(event.stream_id, [(b":status", b"200")])
            protocol.send_data(event.stream_id, b"x" * 1000)
        elif isinstance(event, h2.events.WindowUpdated) and event.stream_id:
            opened.append(event.delta)
            protocol.end_stream(event.stream_id)

    async with connected(fill, stream_window=1000) as connection:
        exchange = await connection.start("GET", "/")
        await exchange.head()
        assert opened == []
        assert await exchange.read() == b"x" * 1000
        assert await exchange.read() == b""
        assert opened == [1000]


async def test_a_reset_stream_fails_with_its_code():
    def reset(protocol: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            protocol.reset_stream(event.stream_id, 2)

    async with connected(reset) as connection:
        with pytest.raises(ExchangeFailed) as failure:
            await request(connection, "GET", "/")
        assert (failure.value.kind, failure.value.code) == (FailureKind.RESET, 2)


async def test_goaway_ends_open_exchanges_with_its_code():
    def refuse(protocol: h2.connection.H2Connection, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            protocol.close_connection(error_code=11)

    async with connected(refuse) as connection:
        exchange = await connection.start("GET", "/")
        while connection.goaway is None:
            await connection.wait_change()
        assert connection.goaway[0] == 11
        await connection.abort()
        with pytest.raises(ExchangeFailed) as failure:
            await exchange.head()
        assert (failure.value.kind, failure.value.code) == (FailureKind.CLOSED, 11)


async def test_what_h2_refuses_is_a_violation():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00")  # WINDOW_UPDATE of 0
        await reader.read()
        writer.close()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = await Http2Connection.connect("127.0.0.1", port)
    with pytest.raises(ServerViolation):
        await connection.close()
    await ended.wait()
    server.close()

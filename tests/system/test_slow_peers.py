"""Peers that send or read slowly, over HTTP/1.1 and 2: each ends by a limit, and is counted."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.support.admin import Admin
from tests.support.http1_client import Http1Connection
from tests.support.http2_frames import (
    END_HEADERS,
    END_STREAM,
    POST,
    FrameClient,
    data,
    headers,
    request,
    settings,
    window_update,
)
from tests.support.server import PATIENCE, Server, serve
from tests.support.stream import ByteStream

pytestmark = pytest.mark.slow

SHORT = 0.5
CANCEL = 8
SMALL_BUFFER = 8192
DRIPS = 0.05


async def http1(server: Server, **options: int) -> Http1Connection:
    stream = await ByteStream.connect(server.host, server.port, **options)
    return Http1Connection(stream)


async def http2(server: Server, *pairs: tuple[int, int], **options: int) -> FrameClient:
    client = await FrameClient.connect(server.host, server.port, **options)
    await client.begin(*pairs)
    return client


@contextlib.asynccontextmanager
async def dripping(connection: Http1Connection | FrameClient, part: bytes):
    """Send a part again and again, until the server has had enough."""

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await connection.stream.write(part)
                await asyncio.sleep(DRIPS)

    task = asyncio.create_task(drip())
    yield
    task.cancel()
    await asyncio.wait([task])


async def slow_head(server: Server) -> None:
    """Slowloris: the time is that of the whole head, not of its parts."""
    connection = await http1(server)
    await connection.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
    async with dripping(connection, b"x"):
        assert (await connection.response()).status == 408
    await connection.close()


async def slow_head_behind_a_request(server: Server) -> None:
    connection = await http1(server)
    await connection.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nX: ")
    assert (await connection.response()).status == 200
    async with dripping(connection, b"x"):
        assert (await connection.response()).status == 408
    await connection.close()


async def body_that_stops(server: Server) -> None:
    connection = await http1(server)
    await connection.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
    assert (await connection.response()).status == 408
    await connection.wait_closed()
    await connection.close()


async def chunk_that_stops(server: Server) -> None:
    connection = await http1(server)
    await connection.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nx")
    assert (await connection.response()).status == 408
    await connection.wait_closed()
    await connection.close()


async def reader_that_stops(server: Server) -> None:
    """More than the buffers of both systems hold, so that it is we who wait."""
    connection = await http1(server, receive_buffer=SMALL_BUFFER)
    many = b"GET /_large HTTP/1.1\r\nHost: a\r\n\r\n" * 16
    await connection.send(many)
    await both_readers_counted(server)
    await connection.close()


async def http2_body_that_stops(server: Server) -> None:
    client = await http2(server)
    await client.send(headers(1, POST, END_HEADERS) + data(1, b"x", 0))
    assert (await client.read_until_answered(1)).answers == {1: 408}
    client.close()


async def http2_window_that_stays_closed(server: Server) -> None:
    """CVE-2019-9517 and what is like it: nothing is let through, and the connection is alive."""
    client = await http2(server, (4, 0))
    await client.send(headers(1, request(path=b"/_large")))
    seen = await client.read_until_answered(1)
    assert (seen.resets, seen.bodies) == ({1: CANCEL}, {})
    await client.send(headers(3, request(b"HEAD")))
    assert (await client.read_until_answered(3)).answers[3] == 200
    client.close()


async def http2_connection_window_that_stays_closed(server: Server) -> None:
    """The window of the connection holds up all streams."""
    client = await http2(server, (4, 1 << 30))
    await client.send(headers(1, request(path=b"/_large")) + headers(3, request(path=b"/_large")))
    seen = await client.read_until_answered(1, 3)
    assert seen.resets == {1: CANCEL, 3: CANCEL}
    client.close()


async def http2_reader_that_stops(server: Server) -> None:
    """Windows are open, TCP's is not."""
    client = await http2(server, (4, 1 << 30), receive_buffer=SMALL_BUFFER)
    asked = [headers(number, request(path=b"/_large")) for number in range(1, 33, 2)]
    await client.send(window_update(0, 1 << 30) + b"".join(asked))
    await both_readers_counted(server)
    client.close()


async def http2_head_that_never_ends(server: Server) -> None:
    """It is no stream yet, so that the connection counts as idle."""
    client = await http2(server)
    await client.send(headers(1, request(), END_STREAM))
    assert (await client.read_to_end()).answers == {}
    client.close()


async def http2_frame_that_never_ends(server: Server) -> None:
    client = await http2(server)
    await client.send(b"\x00\x40\x00\x01\x05\x00\x00\x00\x01")
    async with dripping(client, b"\x00"):
        assert (await client.read_to_end()).answers == {}
    client.close()


async def http2_preface_that_stops(server: Server) -> None:
    client = await FrameClient.connect(server.host, server.port)
    await client.send(b"PRI * HTTP/2.0\r\n\r\nSM")
    assert (await client.stream.read_to_end()).startswith(b"HTTP/1.1 408 ")
    client.close()


async def http2_settings_that_are_never_acknowledged(server: Server) -> None:
    """We announce them once and never change them, so nothing waits for it."""
    client = await http2(server)
    await client.send(settings() + headers())
    assert (await client.read_until_answered(1)).answers == {1: 200}
    client.close()


async def both_readers_counted(server: Server) -> None:
    """Neither goes before the other has been given up, too."""
    admin = Admin(server)
    while (await admin.refusals()).get("write_timeout", 0) < 2:
        await asyncio.sleep(DRIPS)


@pytest.mark.parametrize("parser", ["httptools", "h11"])
async def test_slow_peers(parser: str):
    """All at once, and beside one that is answered: starting servers costs more than they do."""
    async with serve(
        "tests.support.reflecting_app:app",
        workers=2,
        http1_parser=parser,
        admin="127.0.0.1:0",
        header_timeout=SHORT,
        keep_alive=SHORT,
        body_timeout=SHORT,
        h2_idle_timeout=SHORT,
    ) as server:
        admin = Admin(server)
        await admin.wait_ready()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(
                slow_head(server),
                slow_head_behind_a_request(server),
                body_that_stops(server),
                chunk_that_stops(server),
                reader_that_stops(server),
                http2_body_that_stops(server),
                http2_window_that_stays_closed(server),
                http2_connection_window_that_stays_closed(server),
                http2_reader_that_stops(server),
                http2_head_that_never_ends(server),
                http2_frame_that_never_ends(server),
                http2_preface_that_stops(server),
                http2_settings_that_are_never_acknowledged(server),
            )
            await admin.wait_refusals(
                {"http1_head_timeout": 3, "body_timeout": 3, "write_timeout": 2, "http2_stalled": 3}
            )

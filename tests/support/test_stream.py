"""The client's byte stream: TLS, a peer that is not read, and rude ends."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from tests.support.certificates import certificates
from tests.support.stream import ByteStream


def server_context() -> ssl.SSLContext:
    files = certificates()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certfile, files.keyfile)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.mark.parametrize("secure", [False, True])
async def test_bytes_go_both_ways_at_once(secure: bool):
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        ended.set()

    ended = asyncio.Event()
    listener = await asyncio.start_server(
        echo, "127.0.0.1", 0, ssl=server_context() if secure else None
    )
    port = listener.sockets[0].getsockname()[1]
    tls = certificates().client_context("h2") if secure else None
    size = 3_000_000
    async with await ByteStream.connect("127.0.0.1", port, tls=tls) as stream:
        assert stream.alpn == ("h2" if secure else None)
        writing = asyncio.create_task(stream.write(bytes(size)))
        assert await stream.read_exactly(size) == bytes(size)
        await writing
        await stream.end_writes()
        await ended.wait()
    listener.close()
    await listener.wait_closed()


async def test_a_certificate_of_a_stranger_is_refused():
    listener = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=server_context()
    )
    port = listener.sockets[0].getsockname()[1]
    with pytest.raises(ssl.SSLCertVerificationError):
        await ByteStream.connect("127.0.0.1", port, tls=ssl.create_default_context())
    listener.close()


async def test_nothing_is_read_that_was_not_asked_for():
    sent = 0
    stopped = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(high=0)
        try:
            while True:
                writer.write(bytes(65536))
                async with asyncio.timeout(0.05):
                    await writer.drain()
                sent += 65536
        except TimeoutError:
            stopped.set()
        writer.transport.abort()

    listener = await asyncio.start_server(flood, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with await ByteStream.connect("127.0.0.1", port, receive_buffer=65536):
        await stopped.wait()
        assert sent < 8_000_000
    listener.close()
    await listener.wait_closed()


async def test_abort_is_seen_as_a_reset():
    outcome: asyncio.Future[type[BaseException] | None] = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            outcome.set_result(None)
        except ConnectionError as error:
            outcome.set_result(type(error))
        writer.close()

    listener = await asyncio.start_server(wait, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    (await ByteStream.connect("127.0.0.1", port)).abort()
    assert await outcome is ConnectionResetError
    (await ByteStream.connect("127.0.0.1", port)).close()
    listener.close()
    await listener.wait_closed()

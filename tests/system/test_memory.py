"""Large bodies between peers of different speed: a worker's memory stays below 150 MiB.

TEST_SCALE multiplies the sizes; 16 makes 1 GiB over HTTP/1.1 and 200 MiB over HTTP/2 and 3.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.behaviour.versions import connect_http1, connect_http2, connect_http3
from tests.support.apps import pattern
from tests.support.client import ClientConnection, ExchangeFailed, read_response
from tests.support.memory_use import peak_memory, reset_peak_memory
from tests.support.server import Server, serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCALE = int(os.environ.get("TEST_SCALE", "2"))
PART = 1 << 19
LIMIT = 150 << 20
VERSIONS: dict[str, tuple[Callable[..., Awaitable[ClientConnection]], int]] = {
    "1.1": (connect_http1, SCALE << 26),
    "2": (connect_http2, SCALE * 25 * PART),
    "3": (connect_http3, SCALE * 25 * PART),
}


@pytest.fixture(params=VERSIONS)
async def connected(
    request: pytest.FixtureRequest,
) -> AsyncIterator[tuple[Server, ClientConnection, int]]:
    connect, size = VERSIONS[request.param]
    async with serve(workers=1, tls=True, http3=True) as server:
        connection = await connect(server)
        yield server, connection, size
        await connection.close()


def digest_of(size: int) -> str:
    digest, part = hashlib.sha256(), pattern(PART)
    for _ in range(size // PART):
        digest.update(part)
    return digest.hexdigest()


async def test_an_upload_to_an_application_that_reads_slowly(
    connected: tuple[Server, ClientConnection, int],
):
    server, connection, size = connected
    exchange = await connection.start("POST", "/slow-hash?pause=1", body=None)
    part = pattern(PART)
    for _ in range(size // PART):
        await exchange.send_body(part)
    await exchange.end_body()
    told = json.loads((await read_response(exchange)).body)
    assert (told["size"], told["sha256"]) == (size, digest_of(size))
    assert peak_memory(server.workers[0]) < LIMIT


async def test_a_download_by_a_client_that_reads_slowly(
    connected: tuple[Server, ClientConnection, int],
):
    server, connection, size = connected
    exchange = await connection.start("GET", f"/bytes?size={size}&part={PART}")
    digest, received, rested = hashlib.sha256(), 0, 0
    while part := await exchange.read():
        digest.update(part)
        received += len(part)
        if received - rested >= PART:
            rested = received
            await asyncio.sleep(0.005)
    assert (received, digest.hexdigest()) == (size, digest_of(size))
    assert peak_memory(server.workers[0]) < LIMIT


STREAMS = 100


@pytest.mark.parametrize("connect", [connect_http2, connect_http3])
async def test_a_client_that_never_opens_its_windows(
    connect: Callable[..., Awaitable[ClientConnection]],
):
    """What waits for it is bounded, and it is given up."""
    async with serve(
        workers=1, tls=True, http3=True, body_timeout=1, h2_idle_timeout=1, quic_idle_timeout=3
    ) as server:
        (pid,) = server.workers.values()
        reset_peak_memory(pid)
        before = peak_memory(pid)
        connection = await connect(server, stream_window=0)
        exchanges = [
            await connection.start("GET", f"/bytes?size={1 << 30}&part=65536")
            for _ in range(STREAMS)
        ]
        for exchange in exchanges:
            with pytest.raises(ExchangeFailed):
                await exchange.read()
        # Each: what lets its application wait, and the part that it was waiting with.
        assert peak_memory(pid) - before < STREAMS * 2 * (128 << 10)
        if connection.version == "2":
            await connection.wait_closed()
        await connection.close()

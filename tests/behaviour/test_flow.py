"""Peers of different speed: the slow one makes the other wait, nobody else; memory is bounded."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import pytest

from tests.behaviour.conftest import Connect
from tests.behaviour.versions import Version
from tests.support.apps import pattern
from tests.support.client import ClientExchange, read_response, request
from tests.support.memory_use import peak_memory, reset_peak_memory
from tests.support.remote_app import AppCall, RemoteApps

pytestmark = pytest.mark.slow

PART = 65536
PATIENCE = 0.25
"""Seconds without progress after which a sender counts as waiting. Too short a time only makes the
measured amount smaller, never the test fail."""
MOST_IN_FLIGHT = 24 << 20
"""What the socket buffers of both sides and our own may hold together; a sender that does not wait
passes any bound."""
MOST_MEMORY = 24 << 20


class Pump:
    """Sends parts one after the other for as long as they go."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], total: int) -> None:
        self.sent = 0
        self.task = asyncio.create_task(self._run(send, total))

    async def _run(self, send: Callable[[bytes], Awaitable[None]], total: int) -> None:
        part = pattern(PART)
        while self.sent < total:
            await send(part)
            self.sent += PART

    async def wait_stalled(self) -> None:
        """Return when nothing has moved for a while, or everything was sent."""
        while not self.task.done():
            before = self.sent
            await asyncio.wait([self.task], timeout=PATIENCE)
            if self.sent == before:
                return


async def begun_response(apps: RemoteApps, exchange: ClientExchange) -> AppCall:
    call = await apps.wait_call()
    await call.start_response()
    await exchange.head()
    return call


async def test_a_slow_reader_makes_the_application_wait(connect: Connect, apps: RemoteApps):
    total = 64 << 20
    connection = await connect(receive_buffer=65536)
    exchange = await connection.start("GET", "/", apps.headers)
    call = await begun_response(apps, exchange)
    reset_peak_memory(call.pid)
    before = peak_memory(call.pid)
    pump = Pump(call.send_body, total)
    await pump.wait_stalled()
    assert pump.sent < MOST_IN_FLIGHT
    assert peak_memory(call.pid) - before < MOST_MEMORY
    digest, size = hashlib.sha256(), 0
    while size < pump.sent:  # it goes on when the client does
        part = await exchange.read()
        digest.update(part)
        size += len(part)
    await exchange.cancel()
    pump.task.cancel()
    await asyncio.wait([pump.task])
    call.finish()


async def test_an_application_that_does_not_read_makes_the_client_wait(
    connect: Connect, apps: RemoteApps
):
    total = 26 << 20
    connection = await connect()
    exchange = await connection.start("POST", "/", apps.headers, body=None)
    call = await apps.wait_call()
    reset_peak_memory(call.pid)
    before = peak_memory(call.pid)
    pump = Pump(exchange.send_body, total)
    await pump.wait_stalled()
    assert pump.sent < MOST_IN_FLIGHT
    assert peak_memory(call.pid) - before < MOST_MEMORY
    receiving = asyncio.create_task(call.receive_all())
    await pump.task
    await exchange.end_body()
    assert hashlib.sha256(await receiving).digest() == expected_digest(total)
    await call.respond()
    call.finish()


def expected_digest(total: int) -> bytes:
    return hashlib.sha256(pattern(PART) * (total // PART)).digest()


async def test_one_slow_exchange_holds_up_no_other(
    connect: Connect, apps: RemoteApps, version: Version
):
    connection = await connect()
    exchange = await connection.start("GET", "/", apps.headers)
    call = await begun_response(apps, exchange)
    pump = Pump(call.send_body, 64 << 20)
    await pump.wait_stalled()
    other = connection if version.multiplexed else await connect()
    for _ in range(5):
        assert (await request(other, "GET", "/hello")).status == 200
    body = pattern(200_000)
    assert (await request(other, "POST", "/echo", body=body)).body == body
    await exchange.cancel()
    pump.task.cancel()
    await asyncio.wait([pump.task])
    call.finish()


async def test_the_more_urgent_response_overtakes(connect: Connect, version: Version):
    """RFC 9218. The first response fills the connection's window; what is read of it makes room,
    which the second one gets until it is complete.
    """
    if not version.multiplexed:
        pytest.skip("one exchange at a time")
    window, frame = 65535, 16384
    connection = await connect(connection_window=window, stream_window=1 << 20)
    first = await connection.start("GET", "/bytes?size=1000000", [("priority", "u=5, i")])
    await first.read()
    target = "/bytes?size=60000&part=60000"
    urgent = await connection.start("GET", target, [("priority", "u=1, i")])
    await urgent.head()
    reading = asyncio.create_task(read_response(urgent))
    made_room = 0
    while not reading.done():
        part = asyncio.create_task(first.read())
        await asyncio.wait([part, reading], return_when=asyncio.FIRST_COMPLETED)
        if part.done():
            made_room += len(part.result())
        part.cancel()
    assert (await reading).body == pattern(60_000)
    assert made_room <= window + frame  # in turns it would take twice as much
    await first.cancel()


async def test_a_slow_writer_is_waited_for(connect: Connect, apps: RemoteApps):
    connection = await connect()
    exchange = await connection.start("POST", "/", apps.headers, body=None)
    call = await apps.wait_call()
    received = b""
    for number in range(20):
        await exchange.send_body(b"%d" % number)
        received += (await call.receive())["body"]
    await exchange.end_body()
    received += await call.receive_all()
    assert received == b"".join(b"%d" % number for number in range(20))
    await call.respond()
    call.finish()

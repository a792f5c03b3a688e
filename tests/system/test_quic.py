"""QUIC connections and their workers: who gets them, what keeps them there, what ends them."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from asgiri.master.admission import RETRY_ABOVE_HALF_OPEN
from tests.support.client import ExchangeFailed, read_response, request
from tests.support.http3_client import Http3Connection
from tests.support.remote_app import remote_apps
from tests.support.sandbox import REFUSED
from tests.support.server import Server, ServerOptions, serve

pytestmark = pytest.mark.slow

Connect = Callable[..., Awaitable[Http3Connection]]
WORKERS = 4
UNKNOWN_VERSION = 0x1A2A3A4A
"""Reserved to exercise version negotiation (RFC 9000 §15)."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """For tests that break nothing."""
    options = ServerOptions(workers=WORKERS, tls=True, options={"http3": True})
    server = Server.start(options)
    yield server
    server.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    opened: list[Http3Connection] = []

    async def connect(server: Server, host: str = "127.0.0.1", **options) -> Http3Connection:
        connection = await Http3Connection.connect(host, server.port, **options)
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        await connection.close()


async def pid_of(connection: Http3Connection) -> int:
    return int((await request(connection, "GET", "/pid")).body)


async def connect_to_all(
    server: Server, connect: Connect, count: int
) -> list[tuple[Http3Connection, int]]:
    """Open `count` connections and tell each one's worker; every worker has one at least.

    A worker whose event loop runs late, because this machine has other things to do, counts as if
    it had up to 64 connections more. So on a busy machine some more are opened.
    """
    served: list[tuple[Http3Connection, int]] = []
    while len(served) < count or {pid for _, pid in served} != set(server.worker_pids):
        assert len(served) < 300, Counter(pid for _, pid in served)
        connection = await connect(server)
        served.append((connection, await pid_of(connection)))
    return served


# Staying with a worker


async def test_connections_spread_over_all_workers_and_each_stays_where_it_is(
    server: Server, connect: Connect
):
    """40 connections over 4 workers; 10 changes of connection ID, 3 NAT rebindings, a migration."""
    served = await connect_to_all(server, connect, 40)

    async def disturb(connection: Http3Connection, pid: int) -> None:
        for change in range(10):
            await connection.change_connection_id()
            if change % 3 == 0:
                assert await pid_of(connection) == pid
        for _ in range(3):
            connection.rebind()
            assert await pid_of(connection) == pid
        await connection.migrate("127.0.0.7")
        assert await pid_of(connection) == pid

    for begin in range(0, len(served), 10):
        await asyncio.gather(*(disturb(*pair) for pair in served[begin : begin + 10]))


async def test_a_request_in_flight_survives_a_rebinding(server: Server, connect: Connect):
    connection = await connect(server)
    async with remote_apps() as apps:
        exchange = await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        await call.start_response()
        await call.send_body(b"before ")
        assert await exchange.read() == b"before "
        connection.rebind()
        await connection.ping()
        await call.send_body(b"after", more=False)
        call.finish()
        assert await exchange.read() == b"after"


async def test_the_application_sees_where_a_connection_began(server: Server, connect: Connect):
    connection = await connect(server)
    host, port = connection.local_address
    response = await request(connection, "GET", "/scope")
    assert f'"client": ["{host}", {port}]'.encode() in response.body
    assert f'"server": ["127.0.0.1", {server.port}]'.encode() in response.body


# The first flight


class Swap:
    """Lets the second datagram go before the first."""

    def __init__(self) -> None:
        self._held: bytes | None = None
        self._done = False

    def __call__(self, datagram: bytes) -> Iterable[bytes]:
        if self._done:
            return [datagram]
        if self._held is None:
            self._held = datagram
            return []
        self._done = True
        return [datagram, self._held]


class FirstFlight:
    """Lets everything go and counts what leaves before the first answer."""

    def __init__(self) -> None:
        self.datagrams = 0
        self._answered = False

    def out(self, datagram: bytes) -> Iterable[bytes]:
        self.datagrams += not self._answered
        return [datagram]

    def incoming(self, datagram: bytes) -> Iterable[bytes]:
        self._answered = True
        return [datagram]


LONG_HELLO = {"alpn_protocols": ["h3", *(f"unknown-{n}-" + "x" * 200 for n in range(8))]}
"""Makes a ClientHello of two datagrams, as those with ML-KEM keys are."""


async def test_a_client_hello_of_two_datagrams_reaches_one_worker(server: Server, connect: Connect):
    for _ in range(12):
        first_flight = FirstFlight()
        connection = await connect(
            server, shape_out=first_flight.out, shape_in=first_flight.incoming, **LONG_HELLO
        )
        assert first_flight.datagrams == 2
        assert await pid_of(connection) in server.worker_pids


async def test_a_client_hello_of_two_datagrams_may_arrive_in_the_wrong_order(
    server: Server, connect: Connect
):
    for _ in range(12):
        begin = time.monotonic()
        connection = await connect(server, shape_out=Swap(), **LONG_HELLO)
        assert await pid_of(connection) in server.worker_pids
        assert time.monotonic() - begin < 5


async def test_version_negotiation_names_what_is_spoken(server: Server):
    destination, source = secrets.token_bytes(8), secrets.token_bytes(5)
    head = struct.pack("!BIB8sB5s", 0xC0, UNKNOWN_VERSION, 8, destination, 5, source)
    answer = await ask(server, head.ljust(1200, b"\0"))
    assert answer[0] & 0x80
    assert answer[1:5] == bytes(4)
    assert answer[5:20] == bytes([5]) + source + bytes([8]) + destination
    versions = struct.unpack(f"!{(len(answer) - 20) // 4}I", answer[20:])
    assert 1 in versions
    assert UNKNOWN_VERSION not in versions


async def test_a_client_of_an_unknown_version_is_served_in_one_it_knows(
    server: Server, connect: Connect
):
    connection = await connect(
        server, original_version=UNKNOWN_VERSION, supported_versions=[UNKNOWN_VERSION, 1]
    )
    assert len(connection.version_negotiations) == 1
    assert await pid_of(connection) in server.worker_pids


async def ask(server: Server, datagram: bytes) -> bytes:
    """The answer to a datagram from a socket of its own."""
    with udp_socket(server) as asking:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(asking, datagram)
        async with asyncio.timeout(10):
            return await loop.sock_recv(asking, 2048)


def udp_socket(server: Server) -> socket.socket:
    asking = socket.socket(type=socket.SOCK_DGRAM)
    asking.setblocking(False)
    asking.connect(("127.0.0.1", server.port))
    return asking


async def test_forged_connection_ids_are_met_with_silence(server: Server):
    """Answers keep their order: a version negotiation at the end tells that nothing came before."""
    loop = asyncio.get_running_loop()
    probe = struct.pack("!BIB8sB", 0xC0, UNKNOWN_VERSION, 8, bytes(8), 0).ljust(1200, b"\0")
    with udp_socket(server) as asking:
        for size in (21, 22, 40, 43, 44, 100, 1200, 1452):
            for _ in range(20):
                first = bytes([0x40 | random.getrandbits(6)])
                await loop.sock_sendall(asking, first + secrets.token_bytes(size - 1))
        await loop.sock_sendall(asking, probe)
        async with asyncio.timeout(10):
            answer = await loop.sock_recv(asking, 2048)
        assert answer[:5] == bytes([answer[0] | 0x80]) + bytes(4)


async def test_rubbish_is_survived(server: Server, connect: Connect):
    loop = asyncio.get_running_loop()
    with udp_socket(server) as asking:
        for _ in range(2000):
            await loop.sock_sendall(asking, os.urandom(random.randrange(1, 1400)))
        for _ in range(50):  # right outside, rubbish inside
            head = struct.pack("!BIB8sB", 0xC3, 1, 8, secrets.token_bytes(8), 0) + b"\0\x44\x96"
            await loop.sock_sendall(asking, head + os.urandom(1200 - len(head)))
    begin = time.monotonic()
    assert await pid_of(await connect(server)) in server.worker_pids
    assert time.monotonic() - begin < 5


async def test_a_bad_network_is_survived(server: Server, connect: Connect):
    generator = random.Random(7)

    def shaper() -> Callable[[bytes], Iterable[bytes]]:
        held: list[bytes] = []

        def shape(datagram: bytes) -> Iterable[bytes]:
            """Lose 5 %, double 5 %, delay 5 % behind the next one."""
            chance = generator.random()
            if chance < 0.05:
                return []
            if chance < 0.10:
                return [datagram, datagram]
            if chance < 0.15:
                held.append(datagram)
                return []
            late = held.copy()
            held.clear()
            return [datagram, *late]

        return shape

    async def use() -> None:
        connection = await connect(server, shape_out=shaper(), shape_in=shaper())
        pids = {await pid_of(connection) for _ in range(5)}
        assert len(pids) == 1
        response = await request(connection, "POST", "/echo", body=bytes(100_000))
        assert response.body == bytes(100_000)

    await asyncio.gather(*(use() for _ in range(8)))


# Retry


async def test_retry_costs_a_round_trip_and_nothing_else(connect: Connect):
    async with serve(workers=WORKERS, tls=True, http3=True, quic_retry="always") as server:
        served = await connect_to_all(server, connect, 12)
        assert {len(connection.retries) for connection, _ in served} == {1}
        long = [await connect(server, **LONG_HELLO) for _ in range(4)]
        # Each of its two Initials is asked to come again; the client heeds the first Retry only.
        assert {len(connection.retries) for connection in long} <= {1, 2}
        assert {await pid_of(connection) for connection in long} <= set(server.worker_pids)
        for connection, pid in served:
            await connection.change_connection_id()
            assert await pid_of(connection) == pid
        for connection in [*(connection for connection, _ in served), *long]:
            await connection.close()


async def test_newcomers_prove_their_address_while_many_others_do_not(connect: Connect):
    """Whoever forges addresses begins connections and hears no answer."""
    async with serve(workers=1, tls=True, http3=True, quic_handshake_timeout=60) as server:
        assert not (await connect(server)).retries
        with udp_socket(server) as forger:
            for _ in range(RETRY_ABOVE_HALF_OPEN + 1):
                client = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["h3"]))
                client.connect(("127.0.0.1", server.port), now=0.0)
                ((initial, _),) = client.datagrams_to_send(now=0.0)
                await asyncio.get_running_loop().sock_sendall(forger, initial)
            connection = await connect(server)
            while not connection.retries:  # its worker has not read them all
                connection = await connect(server)
        assert await pid_of(connection) in server.worker_pids


# Death


async def test_a_killed_worker_s_clients_are_reset_and_served_by_others(connect: Connect):
    async with serve(workers=WORKERS, tls=True, http3=True) as server:
        served = await connect_to_all(server, connect, 20)
        victim = server.kill_worker(2)
        await server.wait_line(rf"pid={victim}.*SIGKILL")
        for connection, pid in served:
            if pid == victim:
                with pytest.raises((ConnectionError, ExchangeFailed)):
                    await request(connection, "GET", "/pid")
                assert connection.stateless_reset
            else:
                assert await pid_of(connection) == pid
        fresh = await connect(server)
        assert await pid_of(fresh) != victim
        await fresh.close()
        for connection, _ in served:
            await connection.close()


async def test_a_restarted_server_resets_its_predecessor_s_connections(connect: Connect):
    """The secret comes from the certificate's key, so that the tokens stay good."""
    async with serve(workers=1, tls=True, http3=True) as first:
        connection = await connect(first)
        port = first.port
        await pid_of(connection)
        first.kill_worker(0, signal.SIGSTOP)  # it says no goodbye
        first.kill_master()
        await first.wait_exit()
        first.kill_worker(0)
        await first.wait_workers_gone(6)
    async with serve(workers=1, tls=True, http3=True, bind=f"127.0.0.1:{port}"):
        with pytest.raises((ConnectionError, ExchangeFailed)):
            await request(connection, "GET", "/pid")
        assert connection.stateless_reset


async def test_connections_are_closed_when_the_master_dies(connect: Connect):
    async with serve(workers=2, tls=True, http3=True) as server:
        connection = await connect(server)
        await pid_of(connection)
        server.kill_master()
        await connection.wait_closed()
        assert connection.termination is not None
        await server.wait_workers_gone(6)


async def test_a_stop_lets_requests_finish_and_closes_in_order(connect: Connect):
    async with serve(workers=2, tls=True, http3=True) as server, remote_apps() as apps:
        idle, busy = await connect(server), await connect(server)
        await pid_of(idle)
        exchange = await busy.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        await call.start_response()
        await call.send_body(b"before ")
        assert await exchange.read() == b"before "
        server.send_signal(signal.SIGTERM)
        await idle.wait_closed()
        await busy.wait_until(lambda: bool(busy.goaways))
        await call.send_body(b"after", more=False)
        call.finish()
        assert (await read_response(exchange)).body == b"after"
        await busy.wait_closed()
        assert [c.termination and c.termination.error_code for c in (idle, busy)] == [0x100] * 2
        assert await server.wait_exit() == 0


# Addresses


async def test_a_wildcard_answers_from_the_address_that_was_asked(connect: Connect):
    """The client's socket is connected: an answer from another address would never arrive."""
    async with serve(workers=2, tls=True, http3=True, bind="0.0.0.0:0") as server:
        for host in ("127.0.0.1", "127.0.0.2"):
            connection = await connect(server, host)
            response = await request(connection, "GET", "/scope")
            assert f'"server": ["{host}", {server.port}]'.encode() in response.body
            await connection.change_connection_id()
            connection.rebind()
            assert await pid_of(connection) in server.worker_pids
            await connection.close()


async def test_several_addresses_and_ipv6(connect: Connect):
    binds = ("127.0.0.1:0", "127.0.0.2:0", "[::1]:0")
    async with serve(workers=2, tls=True, http3=True, bind=binds) as server:
        addresses = server.addresses("udp")
        assert sorted(host for host, _ in addresses) == ["127.0.0.1", "127.0.0.2", "::1"]
        for host, port in addresses:
            connection = await Http3Connection.connect(host, port)
            assert await pid_of(connection) in server.worker_pids
            connection.rebind()
            assert await pid_of(connection) in server.worker_pids
            await connection.close()


# Without shared memory


async def test_the_stream_channel_carries_the_same(connect: Connect):
    """What macOS and locked-down containers use."""
    async with serve(workers=2, tls=True, http3=True, ring_channel="stream") as server:
        for connection, pid in await connect_to_all(server, connect, 6):
            connection.rebind()
            body = os.urandom(100_000)
            assert (await request(connection, "POST", "/echo", body=body)).body == body
            assert await pid_of(connection) == pid
            await connection.close()


@pytest.mark.skipif(not REFUSED, reason="the numbers of the system calls are not known here")
async def test_a_sandbox_without_memfd_eventfd_and_pidfd_is_served_in_all_the_same(
    connect: Connect,
):
    options = ServerOptions(workers=2, tls=True, options={"http3": True})
    sandbox = (sys.executable, "-m", "tests.support.sandbox")
    server = await asyncio.to_thread(lambda: Server.start(options, prefix=sandbox))
    try:
        for connection, pid in await connect_to_all(server, connect, 4):
            connection.rebind()
            assert await pid_of(connection) == pid
            await connection.close()
        pid = server.kill_worker(0)
        await server.wait_replaced(0, pid)
        assert await pid_of(await connect(server)) in server.worker_pids
    finally:
        await asyncio.to_thread(server.stop)

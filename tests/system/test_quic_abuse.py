"""Clients that mean harm, over QUIC: each is bounded, counted, and nobody else's trouble.

Attacks are as long as it takes to go beyond a limit; all of it on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pylsqpack
import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from asgiri.worker.protocol.http3 import RETIRED_BURST
from asgiri.worker.protocol.http3_frames import (
    DATA,
    HEADERS,
    PRIORITY_UPDATE,
    ErrorCode,
    frame,
    write_integer,
)
from asgiri.worker.protocol.http3_streams import RESET_BURST
from asgiri.worker.protocol.quic import MAX_CRYPTO, MIN_GAPS
from tests.support.admin import Admin
from tests.support.memory_use import peak_memory, reset_peak_memory
from tests.support.quic_probe import GET, POST, Probe, crypto_frame
from tests.support.server import PATIENCE, Server, ServerOptions, serve

pytestmark = pytest.mark.slow

MAX_GROWTH = 64 << 20
GREASE = 0x21 + 0x1F * 5
UPLOAD = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = {"http3": True, "admin": "127.0.0.1:0"}
    server = Server.start(ServerOptions(workers=2, tls=True, options=options))
    pids = server.worker_pids
    yield server
    assert server.worker_pids == pids
    server.stop()


@pytest.fixture
async def bystanders(server: Server) -> AsyncIterator[list[Probe]]:
    """Connections of others, to both workers if chance will have it; answered at the end."""
    probes = [await Probe.connect(server.port) for _ in range(4)]
    for pid in server.worker_pids:
        reset_peak_memory(pid)
    before = {pid: peak_memory(pid) for pid in server.worker_pids}
    yield probes
    for probe in probes:
        await probe.assert_serves()
        probe.close_quic()
        probe.vanish()
    grown = {pid: peak_memory(pid) - before[pid] for pid in server.worker_pids}
    assert max(grown.values()) < MAX_GROWTH, grown


@pytest.fixture
async def probe(server: Server, bystanders: list[Probe]) -> AsyncIterator[Probe]:
    probe = await Probe.connect(server.port)
    yield probe
    probe.close_quic()
    probe.vanish()


# Floods on one connection


async def many_challenges(probe: Probe) -> None:
    """aioquic 544, CVE-2023-49295: each wants an answer."""
    for number in range(200):
        payload = b"".join(b"\x1a%08d" % (100 * number + which) for which in range(100))
        probe.send_packet(payload)


async def small_frames_of_every_kind(probe: Probe) -> None:
    for payload in (
        b"\x01" * 1000,
        b"\x10\x05" * 500,
        b"\x12\x05\x13\x05" * 250,
        b"\x14\x05" * 500,
        b"\x1b12345678" * 100,
        b"\x02\x00\x00\x00\x00" * 200,
        b"\x08\x02" * 1,
    ):
        for _ in range(50):
            probe.send_packet(payload)
    await probe.silence()


async def retire_what_is_given(probe: Probe) -> None:
    for _ in range(2 * RETIRED_BURST):
        if probe.closed.is_set():
            return
        await probe.change_connection_id()


async def tls_without_end(probe: Probe) -> None:
    """aioquic 501, CVE-2024-1765."""
    message = b"\x18\xff\xff\xff" + bytes(996)
    for offset in range(0, 2 * MAX_CRYPTO, 1000):
        probe.send_packet(crypto_frame(message, offset))
        message = bytes(1000)


async def gaps_without_end(probe: Probe) -> None:
    for first in range(0, 20 * MIN_GAPS, 200):
        offsets = range(2 * first + 1, 2 * (first + 100), 2)
        probe.send_packet(b"".join(b"\x0e\x00" + write_integer(at) + b"\x01x" for at in offsets))


async def rapid_resets(probe: Probe) -> None:
    """CVE-2023-44487."""
    stream = 0
    while not probe.closed.is_set():
        room = stream // 4 + 50
        await probe.wait_until(lambda room=room: probe.quic._remote_max_streams_bidi > room)  # type: ignore[misc]
        for _ in range(50):
            stream = probe.quic.get_next_available_stream_id()
            probe.quic.send_stream_data(stream, probe.section(GET))
            probe.quic.reset_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
            probe.quic.stop_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
        assert stream < 4 * 10 * RESET_BURST
        await probe.silence()


async def qpack_bomb(probe: Probe) -> None:
    """CVE-2016-6581 in QPACK: an entry of 4 KiB, named 60,000 times by an octet each."""
    entry = b"\x43x-a\x7f" + b"\xa1\x1e" + b"b" * 4000
    probe.send(6, b"\x02\x3f\xe1\x1f" + entry)
    await probe.silence()
    for _ in range(20):
        stream = probe.open(frame(HEADERS, b"\x02\x00" + b"\x80" * 60_000), ended=True)
        assert (await probe.response(stream)).status == 431


async def more_blocked_than_allowed(probe: Probe) -> None:
    for _ in range(20):
        probe.open(frame(HEADERS, b"\x02\x00\x80"), ended=True)


async def huge_fields(probe: Probe) -> None:
    for _ in range(20):
        fields = [*GET, *[(b"x-%d" % number, b"v" * 4000) for number in range(40)]]
        section = frame(HEADERS, pylsqpack.Encoder().encode(0, fields)[1])
        assert (await probe.response(probe.open(section, ended=True))).status == 431


async def grease_without_end(probe: Probe) -> None:
    stream = probe.open(probe.section(POST))
    for _ in range(20):
        probe.send(stream, frame(GREASE, b"") * 5000)
        probe.send(2, frame(GREASE, b"x") * 3000)
        await probe.silence()
    probe.send(stream, b"", ended=True)
    assert (await probe.response(stream)).status == 200


async def empty_data_without_end(probe: Probe) -> None:
    stream = probe.open(probe.section(POST))
    for _ in range(20):
        probe.send(stream, frame(DATA, b"") * 10_000)
        await probe.silence()
    probe.send(stream, b"", ended=True)
    assert (await probe.response(stream)).status == 200


async def priorities_without_end(probe: Probe) -> None:
    for first in range(0, 20_000, 1000):
        probe.send(
            2,
            b"".join(
                frame(PRIORITY_UPDATE, write_integer(4 * number) + b"u=1")
                for number in range(first, first + 1000)
            ),
        )
        await probe.silence()


async def streams_of_no_type(probe: Probe) -> None:
    for _ in range(100):
        stream = probe.quic.get_next_available_stream_id(is_unidirectional=True)
        stream = max(stream, 6)
        probe.send(stream, write_integer(GREASE) + b"x", ended=True)
        await probe.silence()


Attack = Callable[[Probe], Awaitable[None]]


@pytest.mark.parametrize(
    "attack",
    [
        small_frames_of_every_kind,
        grease_without_end,
        empty_data_without_end,
        priorities_without_end,
        streams_of_no_type,
    ],
)
async def test_what_costs_little_is_borne(probe: Probe, attack: Attack):
    await attack(probe)
    await probe.assert_serves()


@pytest.mark.parametrize(
    ("attack", "counter"),
    [(qpack_bomb, "http3_headers_too_large"), (huge_fields, "http3_headers_too_large")],
)
async def test_what_is_too_much_is_refused_each_time(
    server: Server, probe: Probe, attack: Attack, counter: str
):
    before = await Admin(server).refusals()
    await attack(probe)
    await probe.assert_serves()
    await Admin(server).wait_more_refusals(before, **{counter: 20})


@pytest.mark.parametrize(
    ("attack", "kind", "code", "counter"),
    [
        (many_challenges, 0x1C, 0x01, "quic_frame_flood"),
        (retire_what_is_given, 0x1D, ErrorCode.H3_EXCESSIVE_LOAD, "quic_frame_flood"),
        (tls_without_end, 0x1C, 0x0D, "quic_crypto_buffer"),
        (gaps_without_end, 0x1C, 0x01, "quic_frame_flood"),
        (rapid_resets, 0x1D, ErrorCode.H3_EXCESSIVE_LOAD, "http3_reset_flood"),
        (
            more_blocked_than_allowed,
            0x1D,
            ErrorCode.QPACK_DECOMPRESSION_FAILED,
            "http3_compression",
        ),
    ],
)
async def test_who_does_not_stop_is_sent_away(
    server: Server, probe: Probe, attack: Attack, kind: int, code: int, counter: str
):
    before = await Admin(server).refusals()
    with contextlib.suppress(ConnectionError):
        await attack(probe)
    await probe.wait_closed()
    assert probe.closed_with(kind) == code, probe.describe_end()
    await Admin(server).wait_more_refusals(before, **{counter: 1})


async def test_packets_that_share_a_datagram_with_a_beginning(
    server: Server, bystanders: list[Probe]
):
    """CVE-2025-54939: each for a connection of its own, and none of them can be read."""
    with Probe.open_socket("127.0.0.1", server.port) as sending:
        for number in range(500):
            packets = b"".join(
                b"\xc3\0\0\0\1\x08%08d\0\0\x40\x64" % (8 * number + which) + bytes(100)
                for which in range(8)
            )
            sending.send(packets.ljust(1200, b"\0"))
            if number % 20 == 0:
                await bystanders[0].silence()


async def test_connection_ids_without_end(server: Server, probe: Probe):
    """CVE-2024-22189: each frame retires all before it, and that is never acknowledged."""
    before = await Admin(server).refusals()
    probe.deaf_and_dumb = True
    for sequence in range(20, 1020):
        numbers = write_integer(sequence) * 2
        probe.send_packet(b"\x18" + numbers + b"\x08%08d" % sequence + bytes(16))
    await Admin(server).wait_more_refusals(before, quic_protocol_error=1)


# Who sends what others have sent


async def test_packets_that_somebody_replays_change_nothing(server: Server, probe: Probe):
    """Off the path: it has seen packets, cannot read them, and wants the answers, or the end."""
    sent: list[bytes] = []
    probe.shape_out = lambda datagram: (sent.append(datagram), datagram)[1:]
    for _ in range(20):
        await probe.assert_serves()
    with Probe.open_socket("127.0.0.1", server.port, local_address="127.0.0.9") as replaying:
        replaying.setblocking(False)
        for datagram in sent * 20:
            replaying.send(datagram)
        for _ in range(5):
            await probe.assert_serves()
        assert _heard(replaying) <= 3 * sum(map(len, sent * 20))


def _heard(sock: socket.socket) -> int:
    size = 0
    while True:
        try:
            size += len(sock.recv(2048))
        except BlockingIOError:
            return size


# Spoofed addresses


class Spoofed:
    """An address that somebody forges: what it is sent counts, and is not answered."""

    def __init__(self, port: int, address: str) -> None:
        self.socket = Probe.open_socket("127.0.0.1", port, local_address=address)
        self.socket.setblocking(False)
        self.sent = 0
        """Bytes in its name."""


def _initials(port: int, count: int) -> list[bytes]:
    made = []
    for _ in range(count):
        client = QuicConnection(configuration=QuicConfiguration(alpn_protocols=["h3"]))
        client.connect(("127.0.0.1", port), now=0.0)
        ((initial, _),) = client.datagrams_to_send(now=0.0)
        made.append(initial)
    return made


async def test_a_flood_of_initials_from_many_addresses():
    """None of them hears its answer. Retry comes in, and clients that do hear it are served."""
    with contextlib.ExitStack() as closing:
        async with serve(workers=2, tls=True, http3=True, admin="127.0.0.1:0") as server:
            await _flood_from_many(server, closing)


async def _flood_from_many(server: Server, closing: contextlib.ExitStack) -> None:
    before = {pid: peak_memory(pid) for pid in [server.pid, *server.worker_pids]}
    initials = _initials(server.port, 200)
    spoofed = [Spoofed(server.port, f"127.0.{number}.1") for number in range(1, 41)]
    for sender in spoofed:
        closing.callback(sender.socket.close)
    flooding = asyncio.create_task(_flood(spoofed, initials))
    times, retried = [], 0
    while retried < 10:
        begin = time.monotonic()
        probe = await Probe.connect(server.port)
        await probe.assert_serves()
        times.append(time.monotonic() - begin)
        retried += bool(probe.retries)
        probe.close_quic()
        probe.vanish()
    flooding.cancel()
    assert statistics.median(times) < 3.0  # 0.02 where nothing else runs
    admin = Admin(server)
    async with asyncio.timeout(PATIENCE):  # the master tells now and then
        while not (await admin.metrics()).value("asgiri_quic_retries_sent_total"):
            await asyncio.sleep(0.05)
    for sender in spoofed:
        assert _heard(sender.socket) <= 3 * sender.sent
    grown = {pid: peak_memory(pid) - before[pid] for pid in before}
    assert max(grown.values()) < MAX_GROWTH, grown


async def _flood(spoofed: list[Spoofed], initials: list[bytes]) -> None:
    for number in itertools.count():
        sender = spoofed[number % len(spoofed)]
        with contextlib.suppress(BlockingIOError):
            sender.sent += sender.socket.send(initials[number % len(initials)])
        if number % 4 == 0:
            await asyncio.sleep(0.002)


# What made hypercorn 0.18 stop answering everybody


async def trailers_of_a_request(probe: Probe) -> None:
    stream = probe.section(POST) + frame(DATA, b"body") + probe.section([(b"a", b"b")])
    answer = await probe.response(probe.open(stream, ended=True))
    assert (answer.status, answer.body) == (200, b"body")


async def body_behind_an_early_answer(probe: Probe) -> None:
    """Of a client that does not heed STOP_SENDING."""
    fields = [(b":method", b"POST"), *GET[1:]]
    stream = probe.open(probe.section(fields) + frame(DATA, b"begun"))
    probe.quic._streams[stream].sender.reset = lambda error_code: None
    assert (await probe.response(stream)).status == 200
    for _ in range(10):
        probe.send(stream, frame(DATA, bytes(1000)))
        await probe.silence()
    probe.send(stream, b"", ended=True)
    await probe.silence()


async def tunnel(probe: Probe) -> None:
    fields = [(b":method", b"CONNECT"), (b":authority", b"localhost:80")]
    stream = probe.open(probe.section(fields))
    await probe.wait_until(lambda: bool(probe.received(stream).data))
    probe.quic.reset_stream(stream, ErrorCode.H3_CONNECT_ERROR)
    probe.flush()
    await probe.silence()


async def body_that_nobody_reads(probe: Probe) -> None:
    fields = [*POST[:3], (b":path", b"/sleep?milliseconds=100")]
    stream = probe.open(probe.section(fields) + frame(DATA, bytes(8 * UPLOAD)))
    assert (await probe.response(stream)).status == 200
    await probe.silence()


async def websocket_closed_with_its_stream(probe: Probe) -> None:
    fields = [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        *GET[1:3],
        (b":path", b"/"),
        (b"sec-websocket-version", b"13"),
    ]
    stream = probe.open(probe.section(fields))
    await probe.wait_until(lambda: bool(probe.received(stream).heads))
    probe.send(stream, frame(DATA, b"\x88\x82\0\0\0\0\x03\xe8"), ended=True)
    assert (await probe.response(stream)).reset_code is None


async def upload(probe: Probe) -> None:
    answer = await probe.response(probe.request(POST, bytes(UPLOAD)))
    assert (answer.status, answer.body) == (200, bytes(UPLOAD))


@pytest.mark.parametrize(
    "ask",
    [
        trailers_of_a_request,
        body_behind_an_early_answer,
        tunnel,
        body_that_nobody_reads,
        websocket_closed_with_its_stream,
        upload,
    ],
)
async def test_others_are_answered_whatever_one_client_asks(probe: Probe, ask: Attack):
    for _ in range(2):
        await ask(probe)
    await probe.assert_serves()

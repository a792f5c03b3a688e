"""What Autobahn asks of HTTP/1.1, asked of every version: frames in, frames out of an echo.

Autobahn itself (`tests/conformance`) speaks HTTP/1.1 only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import pytest

from tests.support.client import ClientConnection
from tests.support.websocket_client import Frame, Opcode, encode_frame, open_websocket

TEXT, BINARY, CONTINUATION = Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION
PING, PONG, CLOSE = Opcode.PING, Opcode.PONG, Opcode.CLOSE
GREETING = "Hello-µ@ßöäüàá-UTF-8!! €😀"


def fragments(opcode: Opcode, payload: bytes, size: int) -> Iterator[bytes]:
    """A message in frames of `size` bytes."""
    parts = [payload[start : start + size] for start in range(0, len(payload), size)]
    for number, part in enumerate(parts):
        kind = opcode if number == 0 else CONTINUATION
        yield encode_frame(kind, part, fin=number == len(parts) - 1)


def with_pings(frames: Iterator[bytes]) -> Iterator[bytes]:
    """A ping before each; one behind the last could be answered before the echo comes."""
    for number, frame in enumerate(frames):
        yield encode_frame(PING, b"%d" % number)
        yield frame


def closing(code: int, reason: bytes = b"") -> bytes:
    return encode_frame(CLOSE, struct.pack("!H", code) + reason)


def closed(code: int) -> Frame:
    return Frame(CLOSE, struct.pack("!H", code))


def pongs(count: int) -> list[Frame]:
    return [Frame(PONG, b"%d" % number) for number in range(count)]


CASES: dict[str, tuple[list[bytes], list[Frame]]] = {
    "empty messages": (
        [encode_frame(TEXT), encode_frame(BINARY)],
        [Frame(TEXT, b""), Frame(BINARY, b"")],
    ),
    **{
        f"{size} bytes": ([encode_frame(BINARY, bytes(size))], [Frame(BINARY, bytes(size))])
        for size in (125, 126, 127, 128, 65535, 65536)
    },
    "pings": (
        [encode_frame(PING, b"%d" % number) for number in range(10)],
        pongs(10),
    ),
    "ping of 125 bytes": ([encode_frame(PING, bytes(125))], [Frame(PONG, bytes(125))]),
    "pongs nobody asked for": (
        [encode_frame(PONG, b"x"), encode_frame(PING, b"0")],
        pongs(1),
    ),
    "fragments": (
        [*fragments(TEXT, GREETING.encode(), 100)],
        [Frame(TEXT, GREETING.encode())],
    ),
    "fragments of one byte": (
        [*fragments(TEXT, GREETING.encode(), 1)],
        [Frame(TEXT, GREETING.encode())],
    ),
    "empty fragments": (
        [
            encode_frame(TEXT, fin=False),
            encode_frame(CONTINUATION, b"middle", fin=False),
            encode_frame(CONTINUATION),
        ],
        [Frame(TEXT, b"middle")],
    ),
    "pings between fragments": (
        [*with_pings(fragments(BINARY, bytes(range(20)), 5))],
        [*pongs(4), Frame(BINARY, bytes(range(20)))],
    ),
    "messages one after the other": (
        [encode_frame(TEXT, b"%d" % number) for number in range(100)],
        [Frame(TEXT, b"%d" % number) for number in range(100)],
    ),
    "character cut across frames": (
        [
            encode_frame(TEXT, "😀".encode()[:2], fin=False),
            encode_frame(PING, b"0"),
            encode_frame(CONTINUATION, "😀".encode()[2:]),
        ],
        [*pongs(1), Frame(TEXT, "😀".encode())],
    ),
    "character that never ends": ([encode_frame(TEXT, "😀".encode()[:3])], [closed(1007)]),
    "bad text in a later fragment": (
        [encode_frame(TEXT, b"good", fin=False), encode_frame(CONTINUATION, b"\xed\xa0\x80")],
        [closed(1007)],
    ),
    "bad text before the message ends": (
        [encode_frame(TEXT, b"\xc0\xaf", fin=False)],
        [closed(1007)],
    ),
    "bad text is fine in a binary message": (
        [encode_frame(BINARY, b"\xc0\xaf")],
        [Frame(BINARY, b"\xc0\xaf")],
    ),
    "message within a message": (
        [encode_frame(TEXT, b"a", fin=False), encode_frame(TEXT, b"b")],
        [closed(1002)],
    ),
    "close without a code": ([encode_frame(CLOSE)], [Frame(CLOSE, b"")]),
    "close with the longest reason": ([closing(1000, bytes(123))], [closed(1000)]),
    "close with a reason that is no text": ([closing(1000, b"\xff")], [closed(1007)]),
    "messages behind a close": (
        [closing(1001), encode_frame(TEXT, b"late"), encode_frame(PING, b"0")],
        [closed(1001)],
    ),
    "close within a message": (
        [encode_frame(TEXT, b"a", fin=False), closing(1000)],
        [closed(1000)],
    ),
    **{
        f"close with {code}": ([closing(code)], [closed(code)])
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    },
    **{
        f"close with {code}, which nobody sends": ([closing(code)], [closed(1002)])
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
}


def plain(frame: Frame) -> Frame:
    """Without the reason of a close, which is for people."""
    return Frame(CLOSE, frame.payload[:2]) if frame.opcode is CLOSE else frame


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "in pieces"])
@pytest.mark.parametrize(("sent", "expected"), CASES.values(), ids=CASES.keys())
async def test_frames_are_answered(
    connection: ClientConnection, sent: list[bytes], expected: list[Frame], at_once: bool
):
    socket = await open_websocket(connection, "/")
    wire = b"".join(sent)
    if at_once:
        await socket.send_raw(wire)
    else:
        step = max(1, len(wire) // 20)
        for start in range(0, len(wire), step):
            await socket.send_raw(wire[start : start + step])
    for frame in expected:
        assert plain(await socket.read_frame()) == frame
    if expected[-1].opcode is CLOSE:
        await socket.wait_ended()


COMPRESSIBLE = b"the same words again and again, " * 200


@pytest.mark.parametrize("size", [1, 50, 100_000])
async def test_compressed_messages_in_fragments_with_pings_between(
    connection: ClientConnection, size: int
):
    socket = await open_websocket(connection, "/", deflate=True)
    deflater = zlib.compressobj(wbits=-15)
    for _ in range(3):
        data = (deflater.compress(COMPRESSIBLE) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
        starts = range(0, len(data), size)
        for number, start in enumerate(starts):
            first, last = number == 0, number == len(starts) - 1
            opcode, rsv = (TEXT, 4) if first else (CONTINUATION, 0)
            part = data[start : start + size]
            await socket.send_raw(encode_frame(opcode, part, fin=last, rsv=rsv))
            if not last:
                await socket.send_frame(PING, b"between")
                assert (await socket.read_frame()).opcode is PONG
        assert await socket.read_message() == COMPRESSIBLE.decode()


async def test_a_bomb_is_too_big(connection: ClientConnection):
    socket = await open_websocket(connection, "/", deflate=True)
    await socket.send_compressed(BINARY, bytes(64 << 20))
    assert (await socket.read_close())[0] == 1009
    await socket.wait_ended()

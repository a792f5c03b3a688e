"""HTTP/2, client side, frame by frame: whatever a test wants to send, and what comes back.

No state machine: `http2_client` has h2's. Field blocks are written as literals (RFC 7541 §6.2.2),
so that a block is the same in every connection.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import hpack

from tests.support.stream import ByteStream

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = range(6)
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(6, 10)
PRIORITY_UPDATE = 0x10

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

PROBE = 0x7FFFFFFD
"""The stream by which a conversation asks whether the connection still serves."""


@dataclass(frozen=True, slots=True)
class Frame:
    kind: int
    flags: int
    stream_id: int
    payload: bytes


# Writing


def frame(kind: int, stream_id: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    head = struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream_id)
    return head + payload


def integer(value: int, prefix: int, first: int = 0) -> bytes:
    """RFC 7541 §5.1, behind the bits of `first`."""
    limit = (1 << prefix) - 1
    if value < limit:
        return bytes((first | value,))
    value -= limit
    rest = bytearray()
    while value >= 128:
        rest.append(value & 127 | 128)
        value >>= 7
    return bytes((first | limit, *rest, value))


def literal(name: bytes, value: bytes, first: int = 0) -> bytes:
    """A field whose name and value are written out; `first` chooses the kind (§6.2)."""
    return bytes((first,)) + integer(len(name), 7) + name + integer(len(value), 7) + value


def block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(literal(name, value) for name, value in fields)


def request(
    method: bytes = b"GET",
    path: bytes = b"/",
    *more: tuple[bytes, bytes],
    authority: bytes = b"a.example",
) -> list[tuple[bytes, bytes]]:
    """The fields of a request that keeps all rules."""
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":path", path)]
    return [*pseudo, (b":authority", authority), *more]


GET = request()
POST = request(b"POST")


def headers(
    stream_id: int = 1,
    fields: Iterable[tuple[bytes, bytes]] | bytes = GET,
    flags: int = END_STREAM | END_HEADERS,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """HEADERS with fields or a finished block; `before` and `after` hold padding and priority."""
    encoded = fields if isinstance(fields, bytes) else block(fields)
    return frame(HEADERS, stream_id, before + encoded + after, flags)


def data(stream_id: int = 1, payload: bytes = b"", flags: int = END_STREAM) -> bytes:
    return frame(DATA, stream_id, payload, flags)


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, stream_id, struct.pack("!I", increment))


def rst_stream(stream_id: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, stream_id, struct.pack("!I", code))


def settings(*pairs: tuple[int, int], flags: int = 0) -> bytes:
    return frame(SETTINGS, 0, b"".join(struct.pack("!HI", *pair) for pair in pairs), flags)


def ping(payload: bytes = bytes(8), flags: int = 0) -> bytes:
    return frame(PING, 0, payload, flags)


def goaway(last: int = 0, code: int = 0, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, struct.pack("!II", last, code) + debug)


# Reading


@dataclass
class Conversation:
    """What a server said until it had answered the probe, or ended the connection."""

    frames: list[Frame] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)
    """Streams to the status of their response."""
    fields: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    bodies: dict[int, int] = field(default_factory=dict)
    """Streams to the size of what came of their body."""
    ended: set[int] = field(default_factory=set)
    resets: dict[int, int] = field(default_factory=dict)
    """Streams to the code of their first RST_STREAM, but NO_ERROR: that ends an upload (§8.1)."""
    goaway: tuple[int, int] | None = None
    """Last stream and code of the last GOAWAY."""
    pongs: list[bytes] = field(default_factory=list)
    settings_acks: int = 0
    closed: bool = False


class FrameClient:
    """One connection."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.seen = Conversation()
        self._buffer = bytearray()
        self.decoder = hpack.Decoder(max_header_list_size=1 << 20)
        # Whatever the test has allowed by its settings.
        self.decoder.max_allowed_table_size = (1 << 32) - 1
        self._block = bytearray()

    @classmethod
    async def connect(
        cls, host: str, port: int, *, receive_buffer: int | None = None
    ) -> FrameClient:
        return cls(await ByteStream.connect(host, port, receive_buffer=receive_buffer))

    async def begin(self, *pairs: tuple[int, int]) -> None:
        """Send the preface with these settings."""
        await self.send(PREFACE + settings(*pairs))

    async def send(self, sent: bytes) -> None:
        """Exactly these bytes; a server that has had enough may have closed."""
        with contextlib.suppress(ConnectionError):
            await self.stream.write(sent)

    async def read_frame(self) -> Frame | None:
        """The next frame, also noted in `seen`; None at the end."""
        while (received := self._cut()) is None:
            try:
                part = await self.stream.read()
            except ConnectionError:
                part = b""
            if not part:
                self.seen.closed = True
                return None
            self._buffer += part
        self._note(received)
        return received

    async def read_until_answered(self, *streams: int) -> Conversation:
        """Read until the responses on these streams have ended, or the connection has."""
        waited = set(streams)
        while not waited <= self.seen.ended | self.seen.resets.keys():
            if await self.read_frame() is None:
                break
        return self.seen

    async def read_to_end(self) -> Conversation:
        while await self.read_frame() is not None:
            pass
        return self.seen

    def close(self) -> None:
        self.stream.close()

    def _cut(self) -> Frame | None:
        if len(self._buffer) < 9:
            return None
        end = 9 + int.from_bytes(self._buffer[:3])
        if len(self._buffer) < end:
            return None
        kind, flags, stream_id = struct.unpack_from("!BBI", self._buffer, 3)
        received = Frame(kind, flags, stream_id, bytes(self._buffer[9:end]))
        del self._buffer[:end]
        return received

    def _note(self, received: Frame) -> None:
        seen, stream_id = self.seen, received.stream_id
        seen.frames.append(received)
        match received.kind:
            case kind if kind in (HEADERS, CONTINUATION):
                self._block += received.payload
                if received.flags & END_HEADERS:
                    self._note_fields(stream_id)
            case kind if kind == DATA:
                seen.bodies[stream_id] = seen.bodies.get(stream_id, 0) + len(received.payload)
            case kind if kind == RST_STREAM:
                if code := int.from_bytes(received.payload):
                    seen.resets.setdefault(stream_id, code)
            case kind if kind == GOAWAY:
                last, code = struct.unpack_from("!II", received.payload)
                seen.goaway = (last, code)
            case kind if kind == PING and received.flags & ACK:
                seen.pongs.append(received.payload)
            case kind if kind == SETTINGS and received.flags & ACK:
                seen.settings_acks += 1
        if received.kind in (HEADERS, DATA) and received.flags & END_STREAM:
            seen.ended.add(stream_id)

    def _note_fields(self, stream_id: int) -> None:
        decoded = self.decoder.decode(bytes(self._block), raw=True)
        self._block.clear()
        fields = {bytes(name): bytes(value) for name, value in decoded}
        if b":status" in fields:
            self.seen.answers[stream_id] = int(fields[b":status"])
            self.seen.fields[stream_id] = fields

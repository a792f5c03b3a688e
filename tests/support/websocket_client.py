"""WebSocket (RFC 6455), client side, over what carries its bytes: HTTP/1.1, a stream of 2 or 3.

Written out here rather than taken from a library: tests must send what no library would.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Protocol

from tests.support.client import ClientConnection, ExchangeFailed, FieldsIn, Head, ServerViolation
from tests.support.http1_client import Http1Connection

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Opcode(enum.IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


OPCODES = frozenset(Opcode)


@dataclass(frozen=True, slots=True)
class Frame:
    opcode: Opcode
    payload: bytes
    fin: bool = True
    compressed: bool = False
    """RSV1 of permessage-deflate (RFC 7692)."""


class Carrier(Protocol):
    """Bytes both ways: a `ClientExchange` of HTTP/2 or 3, or `Http1Carrier`."""

    async def send_body(self, data: bytes) -> None: ...

    async def read(self) -> bytes:
        """b"" at the end."""


class Http1Carrier:
    """What follows a 101."""

    def __init__(self, connection: Http1Connection) -> None:
        self._connection = connection

    async def send_body(self, data: bytes) -> None:
        await self._connection.write(data)

    async def read(self) -> bytes:
        return await self._connection.reader.read_some(65536)


class WebSocketRefused(Exception):
    def __init__(self, head: Head) -> None:
        super().__init__(f"handshake answered with {head.status}")
        self.head = head


def encode_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    mask: bytes | None = None,
) -> bytes:
    """Any frame, legal or not."""
    first = (fin << 7) | (rsv << 4) | opcode
    bit = masked << 7
    if len(payload) < 126:
        head = struct.pack("!BB", first, bit | len(payload))
    elif len(payload) < 1 << 16:
        head = struct.pack("!BBH", first, bit | 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, bit | 127, len(payload))
    if not masked:
        return head + payload
    key = mask or os.urandom(4)
    return head + key + xor(payload, key)


def xor(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    stretched = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(stretched)).to_bytes(size)


class FrameReader:
    """Frames of a server, out of bytes; strict."""

    def __init__(self, *, deflate: bool = False) -> None:
        self._buffer = bytearray()
        self._deflate = deflate

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_frame(self) -> Frame | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1] & 127, 2
        if size == 126:
            size, start = int.from_bytes(buffer[2:4]), 4
        elif size == 127:
            size, start = int.from_bytes(buffer[2:10]), 10
        if len(buffer) < start or len(buffer) < start + size:
            return None
        frame = self._check(buffer[0], buffer[1], start, bytes(buffer[start : start + size]))
        del buffer[: start + size]
        return frame

    def _check(self, first: int, second: int, start: int, payload: bytes) -> Frame:
        opcode, fin, rsv = first & 15, bool(first & 128), (first >> 4) & 7
        if second & 128:
            raise ServerViolation("masked frame from a server")
        if opcode not in OPCODES:
            raise ServerViolation(f"opcode {opcode}")
        if opcode >= Opcode.CLOSE and (not fin or len(payload) > 125 or rsv):
            raise ServerViolation(f"control frame {first:#x} of {len(payload)} bytes")
        if rsv not in ((0, 4) if self._deflate else (0,)):
            raise ServerViolation(f"reserved bits {rsv}")
        if (start == 4 and len(payload) < 126) or (start == 10 and len(payload) < 1 << 16):
            raise ServerViolation("length not in its shortest form")
        return Frame(Opcode(opcode), payload, fin, rsv == 4)

    @property
    def buffered(self) -> bytes:
        return bytes(self._buffer)


class WebSocketClient:
    """An open WebSocket."""

    def __init__(self, carrier: Carrier, head: Head) -> None:
        self.carrier = carrier
        self.head = head
        extensions = head.header("sec-websocket-extensions") or ""
        self.deflate = extensions.startswith("permessage-deflate")
        self._reader = FrameReader(deflate=self.deflate)
        self._inflater = zlib.decompressobj(-15)
        self._deflater = zlib.compressobj(wbits=-15)
        self._keeps_context = "server_no_context_takeover" not in extensions

    @property
    def subprotocol(self) -> str | None:
        return self.head.header("sec-websocket-protocol")

    # Sending

    async def send_raw(self, data: bytes) -> None:
        await self.carrier.send_body(data)

    async def send_frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        await self.send_raw(encode_frame(opcode, payload, fin=fin))

    async def send_text(self, text: str) -> None:
        await self.send_frame(Opcode.TEXT, text.encode())

    async def send_bytes(self, data: bytes) -> None:
        await self.send_frame(Opcode.BINARY, data)

    async def send_compressed(self, opcode: int, payload: bytes) -> None:
        deflated = self._deflater.compress(payload) + self._deflater.flush(zlib.Z_SYNC_FLUSH)
        await self.send_raw(encode_frame(opcode, deflated[:-4], rsv=4))

    async def send_close(self, code: int | None = 1000, reason: str = "") -> None:
        payload = b"" if code is None else struct.pack("!H", code) + reason.encode()
        await self.send_frame(Opcode.CLOSE, payload)

    # Receiving

    async def read_frame(self) -> Frame:
        """The next frame; EOFError when the carrier ended."""
        while (frame := self._reader.next_frame()) is None:
            data = await self.carrier.read()
            if not data:
                raise EOFError(f"ended with {self._reader.buffered!r}")
            self._reader.feed(data)
        return frame

    async def read_message(self) -> str | bytes:
        """The next message, whole; control frames before it are a violation."""
        first = await self.read_frame()
        if first.opcode not in (Opcode.TEXT, Opcode.BINARY):
            raise ServerViolation(f"{first} where a message was expected")
        parts, frame = [first.payload], first
        while not frame.fin:
            frame = await self.read_frame()
            if frame.opcode is not Opcode.CONTINUATION:
                raise ServerViolation(f"{frame} inside a message")
            parts.append(frame.payload)
        payload = b"".join(parts)
        if first.compressed:
            payload = self.inflate(payload)
        return payload.decode() if first.opcode is Opcode.TEXT else payload

    async def read_close(self) -> tuple[int | None, str]:
        """The server's close frame: code and reason."""
        frame = await self.read_frame()
        if frame.opcode is not Opcode.CLOSE:
            raise ServerViolation(f"{frame} where a close was expected")
        if not frame.payload:
            return None, ""
        return int.from_bytes(frame.payload[:2]), frame.payload[2:].decode()

    async def wait_ended(self) -> None:
        """The carrier ends, and no frame comes before that."""
        try:
            frame = await self.read_frame()
        except (EOFError, ExchangeFailed):
            return
        raise ServerViolation(f"{frame} after the end")

    def inflate(self, payload: bytes) -> bytes:
        inflater = self._inflater if self._keeps_context else zlib.decompressobj(-15)
        return inflater.decompress(payload + b"\x00\x00\xff\xff")


async def open_websocket(
    connection: ClientConnection,
    path: str = "/",
    headers: FieldsIn = (),
    *,
    subprotocols: tuple[str, ...] = (),
    deflate: bool = False,
) -> WebSocketClient:
    """Do the handshake that the connection's version asks for (RFC 6455, 8441, 9220)."""
    fields = [*headers, ("sec-websocket-version", "13")]
    if subprotocols:
        fields.append(("sec-websocket-protocol", ", ".join(subprotocols)))
    if deflate:
        fields.append(("sec-websocket-extensions", "permessage-deflate"))
    if isinstance(connection, Http1Connection):
        return await _upgrade(connection, path, fields)
    exchange = await connection.start(  # type: ignore[call-arg]
        "CONNECT", path, fields, body=None, protocol="websocket"
    )
    head = await exchange.head()
    if head.status != 200:
        raise WebSocketRefused(head)
    return WebSocketClient(exchange, head)


async def _upgrade(connection: Http1Connection, path: str, fields: FieldsIn) -> WebSocketClient:
    key = base64.b64encode(os.urandom(16))
    upgrade: list[tuple[str | bytes, str | bytes]] = [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-key", key),
    ]
    exchange = await connection.start("GET", path, [*upgrade, *fields])
    head = await exchange.head()
    if head.status != 101:
        raise WebSocketRefused(head)
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
    if head.header("sec-websocket-accept") != accept:
        raise ServerViolation(f"sec-websocket-accept in {head}")
    if (head.header("upgrade") or "").lower() != "websocket":
        raise ServerViolation(f"upgrade in {head}")
    return WebSocketClient(Http1Carrier(connection), head)

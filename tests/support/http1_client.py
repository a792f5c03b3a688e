"""HTTP/1.1 (RFC 9112), client side, over a `ByteStream`: exact bytes out, strict parsing in."""

from __future__ import annotations

import re
import ssl

from tests.support.client import (
    ExchangeFailed,
    FailureKind,
    Fields,
    FieldsIn,
    Head,
    Response,
    ServerViolation,
    encode_fields,
)
from tests.support.stream import ByteStream

STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) ([\t \x21-\x7e\x80-\xff]*)")
FIELD_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[\x21-\x7e\x80-\xff][\t \x21-\x7e\x80-\xff]*)?)"
)
CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
PART = 65536


class Http1Reader:
    """Responses, out of a stream, one after the other."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.buffer = bytearray()

    async def read_head(self) -> Head:
        block = await self._read_until(b"\r\n\r\n")
        status_line, *lines = block.split(b"\r\n")
        match = STATUS_LINE.fullmatch(status_line)
        if match is None:
            raise ServerViolation(f"status line {status_line!r}")
        return Head(int(match[1]), parse_fields(lines))

    async def read_line(self) -> bytes:
        return await self._read_until(b"\r\n")

    async def read_trailers(self) -> Fields:
        lines = []
        while line := await self.read_line():
            lines.append(line)
        return parse_fields(lines)

    async def read_some(self, limit: int) -> bytes:
        """1 to `limit` bytes; b"" at the end of the stream."""
        if not self.buffer:
            self.buffer += await self._receive(min(limit, PART))
        part = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        return part

    async def _read_until(self, end: bytes) -> bytes:
        searched = 0
        while (index := self.buffer.find(end, max(0, searched - len(end) + 1))) < 0:
            searched = len(self.buffer)
            part = await self._receive(PART)
            if not part:
                raise ExchangeFailed(FailureKind.CLOSED, detail=f"inside {bytes(self.buffer)!r}")
            self.buffer += part
        block = bytes(self.buffer[:index])
        del self.buffer[: index + len(end)]
        return block

    async def _receive(self, limit: int) -> bytes:
        try:
            return await self.stream.read(limit)
        except (ConnectionError, ssl.SSLEOFError) as error:
            raise ExchangeFailed(FailureKind.CLOSED, detail=repr(error)) from error


def parse_fields(lines: list[bytes]) -> Fields:
    fields = []
    for line in lines:
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise ServerViolation(f"field line {line!r}")
        fields.append((match[1].lower(), match[2].rstrip(b" \t")))
    return fields


class Http1Exchange:
    """One request and its response."""

    def __init__(self, connection: Http1Connection, method: str, *, chunked: bool) -> None:
        self.informational: list[Head] = []
        self.trailers: Fields = []
        self._connection = connection
        self._reader = connection.reader
        self._method = method
        self._chunked = chunked
        self._head: Head | None = None
        self._asked = 0
        self._left: int | None = 0
        """Bytes left of the body or chunk; None: until the connection closes."""
        self._chunks = False
        self.complete = False

    # Sending

    async def send_body(self, data: bytes) -> None:
        if self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        await self._connection.write(data)

    async def end_body(self, trailers: FieldsIn = ()) -> None:
        if self._chunked:
            lines = b"".join(b"%b: %b\r\n" % field for field in encode_fields(trailers))
            await self._connection.write(b"0\r\n" + lines + b"\r\n")

    async def cancel(self) -> None:
        await self._connection.abort()

    # Receiving

    async def head(self) -> Head:
        while self._head is None:
            await self._read_one_head()
        return self._head

    async def wait_informational(self) -> Head:
        while len(self.informational) <= self._asked and self._head is None:
            await self._read_one_head()
        if len(self.informational) <= self._asked:
            raise ServerViolation(f"no informational response before {self._head}")
        self._asked += 1
        return self.informational[self._asked - 1]

    async def read(self) -> bytes:
        head = await self.head()
        if self.complete:
            return b""
        if self._left == 0 and self._chunks and not await self._next_chunk():
            return self._end()
        if self._left == 0:
            return self._end()
        part = await self._reader.read_some(PART if self._left is None else min(self._left, PART))
        if self._left is None:
            return part or self._end()
        if not part:
            raise ExchangeFailed(FailureKind.CLOSED, detail=f"{self._left} bytes short: {head}")
        self._left -= len(part)
        if self._chunks and self._left == 0 and await self._reader.read_line() != b"":
            raise ServerViolation("no CRLF after a chunk")
        return part

    def _end(self) -> bytes:
        self.complete = True
        return b""

    async def _next_chunk(self) -> bool:
        line = await self._reader.read_line()
        if CHUNK_SIZE.fullmatch(line) is None:
            raise ServerViolation(f"chunk size {line!r}")
        self._left = int(line, 16)
        if self._left == 0:
            self.trailers = await self._reader.read_trailers()
            return False
        return True

    async def _read_one_head(self) -> None:
        head = await self._reader.read_head()
        if 100 <= head.status < 200 and head.status != 101:
            self.informational.append(head)
            return
        self._head = head
        self._frame(head)

    def _frame(self, head: Head) -> None:
        """RFC 9112 §6.3, and what a server must never send: §6.1, §6.2."""
        codings = head.header_values("transfer-encoding")
        length = head.header("content-length")
        bodyless = head.status < 200 or head.status == 204
        if codings and (length is not None or bodyless or codings != ["chunked"]):
            raise ServerViolation(f"transfer-encoding in {head}")
        if length is not None and (bodyless or not length.isdecimal()):
            raise ServerViolation(f"content-length in {head}")
        if bodyless or self._method == "HEAD" or head.status == 304:
            self._left = 0
        elif codings:
            self._chunks = True
        else:
            self._left = None if length is None else int(length)


class Http1Connection:
    """A connection that carries one exchange at a time."""

    version = "1.1"
    multiplexed = False

    def __init__(self, stream: ByteStream, *, authority: str = "localhost") -> None:
        self.stream = stream
        self.reader = Http1Reader(stream)
        self.authority = authority

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> Http1Connection:
        stream = await ByteStream.connect(host, port, tls=tls, receive_buffer=receive_buffer)
        return cls(stream)

    async def start(
        self,
        method: str,
        path: str,
        headers: FieldsIn = (),
        *,
        body: bytes | None = b"",
        authority: str | None = None,
    ) -> Http1Exchange:
        fields = encode_fields(headers)
        names = {name for name, _ in fields}
        chunked = body is None and b"content-length" not in names
        if chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        elif body and b"content-length" not in names:
            fields.append((b"content-length", b"%d" % len(body)))
        if b"host" not in names:
            fields.insert(0, (b"host", (authority or self.authority).encode()))
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode(), path.encode("latin-1"), lines)
        await self.write(head + (body or b""))
        return Http1Exchange(self, method, chunked=chunked)

    async def write(self, data: bytes) -> None:
        """A server may answer and close before it read everything: its answer will tell."""
        try:
            await self.stream.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    async def send(self, data: bytes) -> None:
        """Exactly these bytes."""
        await self.stream.write(data)

    async def response(self, method: str = "GET") -> Response:
        """Read the response to a request that was sent as bytes."""
        exchange = Http1Exchange(self, method, chunked=False)
        head = await exchange.head()
        body = bytearray()
        while part := await exchange.read():
            body += part
        return Response(
            head.status, head.headers, bytes(body), exchange.trailers, exchange.informational
        )

    async def close(self) -> None:
        self.stream.close()

    async def abort(self) -> None:
        self.stream.abort()

    async def wait_closed(self) -> None:
        """Wait for the end; bytes before it that belong to no response are a violation."""
        try:
            rest = bytes(self.reader.buffer) + await self.stream.read_to_end()
        except ConnectionError:
            return
        if rest:
            raise ServerViolation(f"bytes before the end: {rest[:200]!r}")

    @property
    def local_address(self) -> tuple[str, int]:
        return self.stream.local_address

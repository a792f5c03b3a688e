"""HTTP/3 (RFC 9114), client side, on aioquic. Flow control is given back as a test reads."""

from __future__ import annotations

import socket
from collections import deque
from typing import Any

from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StopSendingReceived, StreamDataReceived, StreamReset

from asgiri.worker.protocol.http3_frames import GOAWAY, ErrorCode, read_integer
from tests.support.client import (
    ExchangeFailed,
    FailureKind,
    Fields,
    FieldsIn,
    Head,
    ServerViolation,
    encode_fields,
)
from tests.support.quic_client import (
    MeteredQuicConnection,
    QuicClient,
    Shaper,
    client_configuration,
)

STREAM_WINDOW = 65536
CONNECTION_WINDOW = 1 << 30
"""So that one stream that is not read holds up no other."""
SEND_SIZE = 65536


class Http3Exchange:
    """One request stream."""

    def __init__(self, connection: Http3Connection, stream_id: int) -> None:
        self.stream_id = stream_id
        self.informational: list[Head] = []
        self.trailers: Fields = []
        self.stop_code: int | None = None
        """Error code of the server's STOP_SENDING: it wants no more of the body."""
        self._connection = connection
        self._asked = 0
        self._head: Head | None = None
        self._parts: deque[bytes] = deque()
        self._waiting = 0
        self._arrived = 0
        self._granted = 0
        self._complete = False
        self._failure: ExchangeFailed | None = None

    # Sending

    async def send_body(self, data: bytes) -> None:
        connection = self._connection
        for start in range(0, len(data), SEND_SIZE):
            if self._failure:
                raise self._failure
            if self.stop_code is not None:
                return
            connection.h3.send_data(self.stream_id, data[start : start + SEND_SIZE], False)
            connection.flush()
            while connection.quic.unsent(self.stream_id) and not self._failure:
                await connection.wait_change()

    async def end_body(self, trailers: FieldsIn = ()) -> None:
        if self.stop_code is not None or self._failure:
            return
        if fields := encode_fields(trailers):
            self._connection.h3.send_headers(self.stream_id, fields, end_stream=True)
        else:
            self._connection.h3.send_data(self.stream_id, b"", True)
        self._connection.flush()

    async def cancel(self) -> None:
        quic = self._connection.quic
        quic.reset_stream(self.stream_id, ErrorCode.H3_REQUEST_CANCELLED)
        if not self._complete:
            quic.stop_stream(self.stream_id, ErrorCode.H3_REQUEST_CANCELLED)
        self._connection.flush()

    # Receiving

    async def head(self) -> Head:
        while self._head is None:
            await self._wait_more()
        return self._head

    async def wait_informational(self) -> Head:
        while len(self.informational) <= self._asked and self._head is None:
            await self._wait_more()
        if len(self.informational) <= self._asked:
            raise ServerViolation(f"no informational response before {self._head}")
        self._asked += 1
        return self.informational[self._asked - 1]

    async def read(self) -> bytes:
        await self.head()
        while True:
            if self._parts:
                data = self._parts.popleft()
                self._waiting -= len(data)
                self.grant()
                self._connection.flush()
                if data:
                    return data
            elif self._complete:
                return b""
            else:
                await self._wait_more()

    async def wait_stopped(self) -> int:
        """The code of the server's STOP_SENDING."""
        while self.stop_code is None:
            await self._wait_more()
        return self.stop_code

    async def _wait_more(self) -> None:
        if self._failure:
            raise self._failure
        if self._complete and self._head is None:
            raise ServerViolation(f"stream {self.stream_id} ended without a response")
        await self._connection.wait_change()

    # From the connection

    def arrived(self, size: int) -> None:
        self._arrived += size

    def grant(self) -> None:
        """Give credit for all but the parts of the body that nobody has read."""
        taken = self._arrived - self._waiting
        if not self._connection.quic.grants_itself:
            self._connection.quic.grant(self.stream_id, taken - self._granted)
        self._granted = taken

    def take_head(self, fields: Fields) -> None:
        (name, status), *rest = fields
        if self._head is not None:
            self.trailers = fields
        elif name != b":status":
            raise ServerViolation(f"no :status first: {fields}")
        elif status.startswith(b"1"):
            self.informational.append(Head(int(status), rest))
        else:
            self._head = Head(int(status), rest)

    def take_body(self, data: bytes) -> None:
        if data:
            self._parts.append(data)
            self._waiting += len(data)

    def complete(self) -> None:
        self._complete = True

    def fail(self, failure: ExchangeFailed) -> None:
        if not self._complete and self._failure is None:
            self._failure = failure


class ClientH3Connection(H3Connection):
    """aioquic's, which knows no HEAD: its response tells a content-length and has no content."""

    def __init__(self, quic: MeteredQuicConnection) -> None:
        super().__init__(quic)
        self.without_content: set[int] = set()
        """Streams whose request was HEAD."""

    def _check_content_length(self, stream: Any) -> None:
        if stream.stream_id not in self.without_content or stream.content_length:
            super()._check_content_length(stream)


class Http3Connection(QuicClient):
    """A connection to the server; `quic` and what `QuicClient` adds are the test's to use."""

    version = "3"
    multiplexed = True

    def __init__(
        self, connected: socket.socket, configuration: QuicConfiguration, **options: Any
    ) -> None:
        super().__init__(connected, configuration, **options)
        self.authority = "localhost"
        self.quic.grants_itself = False
        self.h3 = ClientH3Connection(self.quic)
        self.goaways: list[int] = []
        """Stream IDs of the GOAWAYs that came."""
        self.violation: ServerViolation | None = None
        self._exchanges: dict[int, Http3Exchange] = {}
        self._server_streams: dict[int, bytes] = {}

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        local_address: str | None = None,
        stream_window: int = STREAM_WINDOW,
        connection_window: int = CONNECTION_WINDOW,
        shape_out: Shaper | None = None,
        shape_in: Shaper | None = None,
        **options: Any,
    ) -> Http3Connection:
        """Return when the handshake is complete. Further options are QuicConfiguration's."""
        configuration = client_configuration(
            max_stream_data=stream_window, max_data=connection_window, **options
        )
        connection = cls(
            cls.open_socket(host, port, local_address=local_address),
            configuration,
            shape_out=shape_out,
            shape_in=shape_in,
        )
        try:
            await connection.handshake()
        except BaseException:
            connection.vanish()
            raise
        return connection

    async def start(
        self,
        method: str,
        path: str,
        headers: FieldsIn = (),
        *,
        body: bytes | None = b"",
        authority: str | None = None,
        protocol: str | None = None,
    ) -> Http3Exchange:
        fields = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", (authority or self.authority).encode()),
            (b":path", path.encode("latin-1")),
        ]
        if protocol is not None:
            fields.append((b":protocol", protocol.encode()))
        return await self.start_fields(fields + encode_fields(headers), body=body)

    async def start_fields(self, fields: Fields, *, body: bytes | None = b"") -> Http3Exchange:
        """Open a stream with exactly these fields."""
        stream_id = self.quic.get_next_available_stream_id()
        exchange = self._exchanges[stream_id] = Http3Exchange(self, stream_id)
        if self.closed.is_set():
            exchange.fail(self._failure())
            return exchange
        if (b":method", b"HEAD") in fields:
            self.h3.without_content.add(stream_id)
        self.h3.send_headers(stream_id, fields, end_stream=body == b"")
        self.flush()
        if body:
            await exchange.send_body(body)
            await exchange.end_body()
        return exchange

    def start_raw(self, data: bytes, *, ended: bool = False) -> Http3Exchange:
        """Open a stream with exactly these bytes."""
        stream_id = self.quic.get_next_available_stream_id()
        exchange = self._exchanges[stream_id] = Http3Exchange(self, stream_id)
        self.quic.send_stream_data(stream_id, data, ended)
        self.flush()
        return exchange

    # Closing

    async def close(self) -> None:
        self.close_quic()
        self.vanish()
        if self.violation is not None:
            raise self.violation

    async def abort(self) -> None:
        self.vanish()

    async def wait_change(self) -> None:
        if self.violation is not None:
            raise self.violation
        await super().wait_change()

    # Events

    def event_received(self, event: QuicEvent) -> None:
        stream_id = getattr(event, "stream_id", -1)
        exchange = self._exchanges.get(stream_id)
        if exchange is not None:
            match event:
                case StreamDataReceived(data=data):
                    exchange.arrived(len(data))
                case StreamReset(error_code=code):
                    exchange.fail(ExchangeFailed(FailureKind.RESET, code))
                case StopSendingReceived(error_code=code):
                    exchange.stop_code = code
        elif isinstance(event, StreamDataReceived) and stream_id % 4 == 3:
            self._server_stream(stream_id, event.data)
        for h3_event in self.h3.handle_event(event):
            self._take(h3_event)
        if exchange is not None:
            exchange.grant()
        if self.h3._is_done and self.violation is None:
            self.violation = ServerViolation(f"HTTP/3: {self.quic._close_event}")

    def _take(self, event: Any) -> None:
        exchange = self._exchanges.get(event.stream_id)
        if exchange is None:
            raise ServerViolation(f"{event} on a stream that nobody opened")
        match event:
            case HeadersReceived(headers=headers):
                exchange.take_head(headers)
            case DataReceived(data=data):
                exchange.take_body(data)
        if event.stream_ended:
            exchange.complete()

    def ended(self) -> None:
        for exchange in self._exchanges.values():
            exchange.fail(self._failure())

    def _failure(self) -> ExchangeFailed:
        code = None if self.termination is None else self.termination.error_code
        return ExchangeFailed(FailureKind.CLOSED, code, self.describe_end())

    def _server_stream(self, stream_id: int, data: bytes) -> None:
        """Read the server's control stream for what aioquic skips."""
        data = self._server_streams.get(stream_id, b"") + data
        self._server_streams[stream_id] = data
        kind, offset = read_integer(data, 0)
        if kind != 0:
            return
        goaways = []
        while 0 < offset < len(data):
            frame, offset = read_integer(data, offset)
            size, offset = read_integer(data, offset)
            payload, offset = data[offset : offset + size], offset + size
            if frame == GOAWAY:
                goaways.append(read_integer(payload, 0)[0])
        self.goaways = goaways

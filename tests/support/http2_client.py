"""HTTP/2 (RFC 9113), client side, on h2. Flow control is given back as a test reads."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.errors import ErrorCodes

from tests.support.client import (
    ExchangeFailed,
    FailureKind,
    Fields,
    FieldsIn,
    Head,
    ServerViolation,
    encode_fields,
)
from tests.support.stream import ByteStream

STREAM_WINDOW = 65535
GOAWAY = 7
CONNECTION_WINDOW = 1 << 30
"""So that one stream that is not read holds up no other."""


class Http2Exchange:
    """One stream."""

    def __init__(self, connection: Http2Connection, stream_id: int) -> None:
        self.stream_id = stream_id
        self.informational: list[Head] = []
        self.trailers: Fields = []
        self._connection = connection
        self._asked = 0
        self._head: Head | None = None
        self._parts: deque[tuple[bytes, int]] = deque()
        self._complete = False
        self._failure: ExchangeFailed | None = None
        self._stopped = False
        """The server wants no more of the body: RST_STREAM after its response (RFC 9113 §8.1)."""

    # Sending

    async def send_body(self, data: bytes) -> None:
        protocol = self._connection.h2
        view = memoryview(data)
        while view and not self._stopped:
            if self._failure:
                raise self._failure
            room = protocol.local_flow_control_window(self.stream_id)
            if room <= 0:
                await self._connection.wait_change()
                continue
            size = min(room, len(view), protocol.max_outbound_frame_size)
            protocol.send_data(self.stream_id, bytes(view[:size]))
            view = view[size:]
            await self._connection.flush()

    async def end_body(self, trailers: FieldsIn = ()) -> None:
        if self._stopped:
            return
        if fields := encode_fields(trailers):
            self._connection.h2.send_headers(self.stream_id, fields, end_stream=True)
        else:
            self._connection.h2.end_stream(self.stream_id)
        await self._connection.flush()

    async def cancel(self) -> None:
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self._connection.h2.reset_stream(self.stream_id, ErrorCodes.CANCEL)
        await self._connection.flush()

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
                data, credit = self._parts.popleft()
                await self._connection.acknowledge(self.stream_id, credit)
                if data:
                    return data
            elif self._complete:
                return b""
            else:
                await self._wait_more()

    async def _wait_more(self) -> None:
        if self._failure:
            raise self._failure
        if self._complete:
            raise ServerViolation(f"stream {self.stream_id} ended without a response")
        await self._connection.wait_change()

    # From the connection

    def take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.InformationalResponseReceived():
                self.informational.append(read_head(event.headers))
            case h2.events.ResponseReceived():
                self._head = read_head(event.headers)
            case h2.events.DataReceived():
                self._parts.append((event.data, event.flow_controlled_length))
            case h2.events.TrailersReceived():
                self.trailers = list(event.headers)
            case h2.events.StreamEnded():
                self._complete = True
            case h2.events.StreamReset() if self._complete:
                self._stopped = True
            case h2.events.StreamReset():
                self.fail(ExchangeFailed(FailureKind.RESET, int(event.error_code)))

    def fail(self, failure: ExchangeFailed) -> None:
        if not self._complete and self._failure is None:
            self._failure = failure


def read_head(headers: Fields) -> Head:
    (name, status), *fields = headers
    if name != b":status":
        raise ServerViolation(f"no :status first: {headers}")
    return Head(int(status), [(bytes(key), bytes(value)) for key, value in fields])


class Http2Connection:
    """A connection with a task that always reads; stream windows open as exchanges are read."""

    version = "2"
    multiplexed = True

    def __init__(self, stream: ByteStream, *, authority: str = "localhost", scheme: str) -> None:
        self.stream = stream
        self.authority = authority
        self.scheme = scheme
        self.goaway: tuple[int, int] | None = None
        """Error code and last stream id of the latest GOAWAY."""
        self.goaways: list[tuple[int, int]] = []
        self._received = bytearray()
        self.closed = asyncio.Event()
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding=None)
        )
        self._exchanges: dict[int, Http2Exchange] = {}
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.violation: BaseException | None = None

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
        stream_window: int = STREAM_WINDOW,
        connection_window: int = CONNECTION_WINDOW,
    ) -> Http2Connection:
        stream = await ByteStream.connect(host, port, tls=tls, receive_buffer=receive_buffer)
        if tls is not None and stream.alpn != "h2":
            stream.close()
            raise ServerViolation(f"ALPN chose {stream.alpn}")
        connection = cls(stream, scheme="http" if tls is None else "https")
        await connection.begin(stream_window, connection_window)
        return connection

    async def begin(
        self, stream_window: int = STREAM_WINDOW, connection_window: int = CONNECTION_WINDOW
    ) -> None:
        """Send the preface; return when the server's settings are there."""
        codes = h2.settings.SettingCodes
        self.h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                codes.ENABLE_PUSH: 0,
                codes.INITIAL_WINDOW_SIZE: stream_window,
                codes.MAX_HEADER_LIST_SIZE: 1 << 20,
            },
        )
        self.h2.initiate_connection()
        if connection_window > 65535:
            self.h2.increment_flow_control_window(connection_window - 65535)
        await self.flush()
        self._task = asyncio.create_task(self._read())
        while not self._settled and not self.closed.is_set():
            await self.wait_change()

    _settled = False

    async def start(
        self,
        method: str,
        path: str,
        headers: FieldsIn = (),
        *,
        body: bytes | None = b"",
        authority: str | None = None,
        protocol: str | None = None,
    ) -> Http2Exchange:
        fields = [
            (b":method", method.encode()),
            (b":scheme", self.scheme.encode()),
            (b":authority", (authority or self.authority).encode()),
            (b":path", path.encode("latin-1")),
        ]
        if protocol is not None:
            fields.append((b":protocol", protocol.encode()))
        return await self.start_fields(fields + encode_fields(headers), body=body)

    async def start_fields(self, fields: Fields, *, body: bytes | None = b"") -> Http2Exchange:
        """Open a stream with exactly these fields."""
        stream_id = self.h2.get_next_available_stream_id()
        exchange = self._exchanges[stream_id] = Http2Exchange(self, stream_id)
        if self.closed.is_set():
            exchange.fail(ExchangeFailed(FailureKind.CLOSED))
            return exchange
        self.h2.send_headers(stream_id, fields, end_stream=body == b"")
        await self.flush()
        if body:
            await exchange.send_body(body)
            await exchange.end_body()
        return exchange

    # Closing

    async def close(self) -> None:
        await self._end()
        self.stream.close()
        if self.violation is not None:
            raise self.violation

    async def abort(self) -> None:
        await self._end()
        self.stream.abort()

    async def wait_closed(self) -> None:
        await self.closed.wait()

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @property
    def local_address(self) -> tuple[str, int]:
        return self.stream.local_address

    # Bytes

    async def flush(self) -> None:
        async with self._writing:
            if data := self.h2.data_to_send():
                with contextlib.suppress(ConnectionError, OSError):
                    await self.stream.write(data)

    async def send(self, data: bytes) -> None:
        """Exactly these bytes, past h2."""
        async with self._writing:
            await self.stream.write(data)

    async def wait_change(self) -> None:
        """Return when something has arrived since this call."""
        if self.violation is not None:
            raise self.violation
        self._changed.clear()
        await self._changed.wait()

    async def acknowledge(self, stream_id: int, credit: int) -> None:
        if credit and not self.closed.is_set():
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self.h2.acknowledge_received_data(credit, stream_id)
            await self.flush()

    async def _read(self) -> None:
        try:
            while data := await self.stream.read():
                for event in self.h2.receive_data(self._without_goaway(data)):
                    self._take(event)
                self._changed.set()
                await self.flush()
        except (ConnectionError, ssl.SSLError):
            pass
        except h2.exceptions.ProtocolError as error:
            self.violation = ServerViolation(f"HTTP/2: {error!r}")
        finally:
            self.closed.set()
            for exchange in self._exchanges.values():
                code = None if self.goaway is None else self.goaway[0]
                exchange.fail(ExchangeFailed(FailureKind.CLOSED, code))
            self._changed.set()

    def _without_goaway(self, data: bytes) -> bytes:
        """Whole frames but GOAWAY: h2 takes that for the end, though streams go on (RFC 9113
        §6.8).
        """
        self._received += data
        kept, start = [], 0
        while len(self._received) - start >= 9:
            end = start + 9 + int.from_bytes(self._received[start : start + 3])
            if end > len(self._received):
                break
            frame = bytes(self._received[start:end])
            if frame[3] == GOAWAY:
                code, last = int.from_bytes(frame[13:17]), int.from_bytes(frame[9:13])
                self.goaway = (code, last)
                self.goaways.append(self.goaway)
            else:
                kept.append(frame)
            start = end
        del self._received[:start]
        return b"".join(kept)

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RemoteSettingsChanged():
                self._settled = True
            case _:
                exchange = self._exchanges.get(getattr(event, "stream_id", None) or 0)
                if exchange is not None:
                    exchange.take(event)

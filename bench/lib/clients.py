"""Clients that ask for one page after the other: HTTP/1.1, 2 and 3, no more than a measurement
needs."""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent


class Client(Protocol):
    """One connection."""

    async def get(self, path: str) -> bytes: ...
    async def close(self) -> None: ...


def insecure_context(alpn: list[str]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(alpn)
    return context


class Http1Client:
    """Keep-alive over TCP, with TLS for https."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, url: str) -> Http1Client:
        parts = urlsplit(url)
        context = insecure_context(["http/1.1"]) if parts.scheme == "https" else None
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, ssl=context))

    async def get(self, path: str) -> bytes:
        self._writer.write(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise OSError(head.split(b"\r\n", 1)[0].decode())
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await self._reader.readexactly(int(fields[b"content-length"]))
        if fields.get(b"connection") == b"close":
            # The server asks us to come again; that is an answer like any other.
            await self.close()
        return body

    async def close(self) -> None:
        self._writer.close()


class Http2Client:
    """One request at a time on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self._h2.initiate_connection()

    @classmethod
    async def connect(cls, url: str) -> Http2Client:
        parts = urlsplit(url)
        context = insecure_context(["h2"]) if parts.scheme == "https" else None
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, ssl=context))

    async def get(self, path: str) -> bytes:
        stream_id = self._h2.get_next_available_stream_id()
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", path)]
        self._h2.send_headers(stream_id, fields, end_stream=True)
        body = b""
        while True:
            self._writer.write(self._h2.data_to_send())
            received = await self._reader.read(65536)
            if not received:
                raise ConnectionError("closed by the server")
            for event in self._h2.receive_data(received):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data
                    self._h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
                elif isinstance(event, h2.events.StreamEnded) and event.stream_id == stream_id:
                    return body
                elif isinstance(event, h2.events.ConnectionTerminated):
                    raise ConnectionError("going away")

    async def close(self) -> None:
        self._writer.close()


class _Http3Protocol(QuicConnectionProtocol):
    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.http = H3Connection(self._quic)
        self.waiting: dict[int, tuple[bytearray, asyncio.Future[bytes]]] = {}

    def quic_event_received(self, event: QuicEvent) -> None:
        for received in self.http.handle_event(event):
            if isinstance(received, HeadersReceived | DataReceived):
                body, done = self.waiting[received.stream_id]
                if isinstance(received, DataReceived):
                    body += received.data
                if received.stream_ended and not done.done():
                    done.set_result(bytes(body))

    def connection_lost(self, exc: Exception | None) -> None:
        for _, done in self.waiting.values():
            if not done.done():
                done.set_exception(ConnectionError("lost"))


class Http3Client:
    """One request at a time on one QUIC connection."""

    def __init__(self, context: object, protocol: _Http3Protocol) -> None:
        self._context, self._protocol = context, protocol

    @classmethod
    async def connect(cls, url: str) -> Http3Client:
        parts = urlsplit(url)
        configuration = QuicConfiguration(alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
        assert parts.hostname is not None
        assert parts.port is not None
        context = connect(
            parts.hostname, parts.port, configuration=configuration, create_protocol=_Http3Protocol
        )
        return cls(context, await context.__aenter__())  # type: ignore[arg-type]

    async def get(self, path: str) -> bytes:
        protocol = self._protocol
        stream_id = protocol._quic.get_next_available_stream_id()
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        protocol.waiting[stream_id] = (bytearray(), done)
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", path)]
        encoded = [(name.encode(), value.encode()) for name, value in fields]
        protocol.http.send_headers(stream_id, encoded, end_stream=True)
        protocol.transmit()
        return await done

    async def ping(self) -> None:
        await self._protocol.ping()

    async def close(self) -> None:
        self._protocol.close()


class PingedWebSocket:
    """Sends pings, one at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, url: str) -> PingedWebSocket:
        parts = urlsplit(url)
        context = insecure_context(["http/1.1"]) if parts.scheme == "https" else None
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
        writer.write(
            b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return cls(reader, writer)

    async def ping(self) -> None:
        self._writer.write(b"\x89\x80\x00\x00\x00\x00")
        assert await self._reader.readexactly(2) == b"\x8a\x00"


CLIENTS = {"http1": Http1Client, "tls": Http1Client, "http2": Http2Client, "http3": Http3Client}

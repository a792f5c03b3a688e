"""A QUIC client that sends, over a real socket, what no client library would, and shows what none
does: packets built byte by byte, forged transport parameters and TLS messages, every frame that the
server sent. aioquic does the handshake and keeps the connection alive.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import pylsqpack
from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionId
from aioquic.quic.events import QuicEvent, StopSendingReceived, StreamDataReceived, StreamReset
from aioquic.tls import Epoch

from asgiri.worker.protocol.http3_frames import (
    DATA,
    HEADERS,
    frame,
    read_integer,
    write_integer,
    write_settings,
)
from tests.support.quic_client import (
    PATIENCE,
    MeteredQuicConnection,
    QuicClient,
    client_configuration,
)
from tests.support.quic_pair import ReceivedStream

Parameters = list[tuple[int, bytes]]
"""Transport parameters in order (RFC 9000 §18)."""

HELLO = b"Hello, world!"
GET = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"localhost"),
    (b":path", b"/hello"),
]
POST = [(b":method", b"POST"), *GET[1:3], (b":path", b"/echo")]
NO_SETTINGS: Final[Mapping[int, int]] = {}
TAG_SIZE = 16
NUMBER_SIZE = 4
"""Packet numbers are sent in full, so that a packet may be empty and still have a sample."""
LONG_TYPES = {Epoch.INITIAL: 0, Epoch.ZERO_RTT: 1, Epoch.HANDSHAKE: 2}

# How many integers each frame is made of; all others are handled one by one (RFC 9000 §19).
_INTEGERS: Final = {
    0x01: 0,
    0x04: 3,
    0x05: 2,
    0x10: 1,
    0x11: 2,
    0x12: 1,
    0x13: 1,
    0x14: 1,
    0x15: 2,
    0x16: 1,
    0x17: 1,
    0x19: 1,
    0x1E: 0,
}


def forge_packet(
    quic: QuicConnection,
    payload: bytes,
    epoch: Epoch = Epoch.ONE_RTT,
    *,
    flip: int = 0,
    destination: bytes | None = None,
    source: bytes | None = None,
    token: bytes = b"",
    version: int | None = None,
    number: int | None = None,
) -> bytes:
    """A packet of this client's with exactly these frames, protected with its keys. `flip` are bits
    of the first octet to turn before they are protected."""
    if number is None:
        number = quic._packet_number
        quic._packet_number += 1
    to = quic._peer_cid.cid if destination is None else destination
    crypto = quic._cryptos[epoch]
    if epoch is Epoch.ONE_RTT:
        first = 0x40 | crypto.key_phase << 2 | NUMBER_SIZE - 1
        header = bytes([first ^ flip]) + to
    else:
        first = 0xC0 | LONG_TYPES[epoch] << 4 | NUMBER_SIZE - 1
        own = quic.host_cid if source is None else source
        spoken = quic._version if version is None else version
        header = bytes([first ^ flip]) + (spoken or 1).to_bytes(4, "big")
        header += bytes([len(to)]) + to + bytes([len(own)]) + own
        if epoch is Epoch.INITIAL:
            header += write_integer(len(token)) + token
        length = NUMBER_SIZE + len(payload) + TAG_SIZE
        header += (0x4000 | length).to_bytes(2, "big")
    header += number.to_bytes(NUMBER_SIZE, "big")
    protected: bytes = crypto.encrypt_packet(header, payload, number)
    return protected


def crypto_frame(data: bytes, offset: int = 0) -> bytes:
    return b"\x06" + write_integer(offset) + write_integer(len(data)) + data


def read_parameters(data: bytes) -> Parameters:
    found, offset = [], 0
    while offset < len(data):
        key, offset = read_integer(data, offset)
        size, offset = read_integer(data, offset)
        found.append((key, data[offset : offset + size]))
        offset += size
    return found


def write_parameters(parameters: Parameters) -> bytes:
    parts = (write_integer(key) + write_integer(len(value)) + value for key, value in parameters)
    return b"".join(parts)


def read_frames(payload: bytes) -> list[tuple[int, bytes]]:
    """Type and content of each frame in a packet, but for the padding."""
    buffer = Buffer(data=payload)
    found = []
    while not buffer.eof():
        kind = buffer.pull_uint_var()
        if kind:
            start = buffer.tell()
            _skip_frame(kind, buffer)
            found.append((kind, payload[start : buffer.tell()]))
    return found


def _skip_frame(kind: int, buffer: Buffer) -> None:
    match kind:
        case 0x02 | 0x03:
            _skip_integers(buffer, 2)
            ranges = buffer.pull_uint_var()
            _skip_integers(buffer, 2 * ranges + 1 + (3 if kind == 0x03 else 0))
        case 0x06 | 0x1C | 0x1D:
            _skip_integers(buffer, 2 if kind == 0x1C else 1)
            buffer.pull_bytes(buffer.pull_uint_var())
        case 0x07:
            buffer.pull_bytes(buffer.pull_uint_var())
        case _ if 0x08 <= kind <= 0x0F:
            _skip_integers(buffer, 2 if kind & 4 else 1)
            rest = buffer.capacity - buffer.tell()
            buffer.pull_bytes(buffer.pull_uint_var() if kind & 2 else rest)
        case 0x18:
            _skip_integers(buffer, 2)
            buffer.pull_bytes(buffer.pull_uint8() + 16)
        case 0x1A | 0x1B:
            buffer.pull_bytes(8)
        case _:
            _skip_integers(buffer, _INTEGERS[kind])


def _skip_integers(buffer: Buffer, count: int) -> None:
    for _ in range(count):
        buffer.pull_uint_var()


class ProbedConnection(MeteredQuicConnection):
    """aioquic's client with its TLS and transport parameters forged; it remembers payloads."""

    def __init__(self, *, configuration: QuicConfiguration) -> None:
        self.payloads: list[tuple[Epoch, bytes]] = []
        self.edit_parameters: Callable[[bytes], bytes] = bytes
        self.edit_tls: Callable[[tls.Context], object] = bool
        self.server_parameters: Parameters = []
        super().__init__(configuration=configuration)
        if not configuration.connection_id_length:
            # aioquic's would give the server an ID as short as its own: RFC 9000 §7.2 asks for 8.
            chosen = self._peer_cid.cid = b"\xc1" + os.urandom(7)
            self._original_destination_connection_id = chosen

    def _replenish_connection_ids(self) -> None:
        if self._configuration.connection_id_length:
            super()._replenish_connection_ids()

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.edit_tls(self.tls)

    def _serialize_transport_parameters(self) -> bytes:
        return self.edit_parameters(super()._serialize_transport_parameters())

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        self.server_parameters = read_parameters(data)
        super()._parse_transport_parameters(data, from_session_ticket)

    def _payload_received(self, context: Any, plain: bytes, *rest: Any, **more: Any) -> Any:
        self.payloads.append((context.epoch, plain))
        return super()._payload_received(context, plain, *rest, **more)


class Probe(QuicClient):
    """One connection, with the streams of HTTP/3 written by hand."""

    connection_type = ProbedConnection
    quic: ProbedConnection

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.streams: dict[int, ReceivedStream] = {}
        self.encoder = pylsqpack.Encoder()
        self.datagrams: list[bytes] = []
        """All that came, as it came."""
        self.deaf_and_dumb = False
        """Nothing of aioquic's leaves; what the test forges does."""

    @classmethod
    def prepare(
        cls,
        port: int,
        *,
        parameters: Callable[[bytes], bytes] = bytes,
        tls: Callable[[tls.Context], object] = bool,
        local_address: str | None = None,
        **options: Any,
    ) -> Probe:
        """A client that has not said anything. `options` are QuicConfiguration's."""
        probe = cls(
            cls.open_socket("127.0.0.1", port, local_address=local_address),
            client_configuration(**options),
        )
        probe.quic.edit_parameters = parameters
        probe.quic.edit_tls = tls
        probe.shape_out = probe._let_out
        probe.shape_in = probe._let_in
        return probe

    @classmethod
    async def connect(
        cls, port: int, *, settings: Mapping[int, int] | None = NO_SETTINGS, **options: Any
    ) -> Probe:
        """A client whose handshake is complete. `settings`: None for no control stream."""
        probe = cls.prepare(port, **options)
        try:
            await probe.handshake()
        except BaseException:
            probe.vanish()
            raise
        if settings is not None:
            probe.send(2, b"\x00" + write_settings(dict(settings)))
        return probe

    # Below the frames

    def first_flight(self) -> list[bytes]:
        """What aioquic would begin with, unsent; from now on it has keys for Initial packets."""
        self.quic.connect(self._address, now=self._loop.time())
        return [datagram for datagram, _ in self.quic.datagrams_to_send(self._loop.time())]

    def send_packet(self, payload: bytes, epoch: Epoch = Epoch.ONE_RTT, **how: Any) -> bytes:
        """Send one packet with these frames; return its datagram."""
        datagram = forge_packet(self.quic, payload, epoch, **how)
        if epoch is Epoch.INITIAL:
            datagram = datagram.ljust(1200, b"\0")  # what follows a packet is ignored
        self.send_raw(datagram)
        return datagram

    def listen_to(self, connection_id: bytes, sequence: int) -> bytes:
        """Take packets to this connection ID, too, which aioquic has not issued."""
        entry = QuicConnectionId(cid=connection_id, sequence_number=sequence, was_sent=True)
        self.quic._host_cids.append(entry)
        self.quic._host_cid_seq = sequence + 1
        return connection_id

    def frames(self, *kinds: int, epoch: Epoch | None = None) -> list[bytes]:
        """Contents of the frames of these types that the server sent."""
        return [
            content
            for came, payload in self.quic.payloads
            if epoch is None or came is epoch
            for kind, content in read_frames(payload)
            if kind in kinds
        ]

    def closed_with(self, kind: int) -> int | None:
        """Code of the server's CONNECTION_CLOSE of this type, None when there was none."""
        contents = self.frames(kind)
        return read_integer(contents[0], 0)[0] if contents else None

    async def wait_frame(self, *kinds: int) -> bytes:
        await self.wait_until(lambda: bool(self.frames(*kinds)))
        return self.frames(*kinds)[0]

    def _let_out(self, datagram: bytes) -> Iterable[bytes]:
        return () if self.deaf_and_dumb else (datagram,)

    def _let_in(self, datagram: bytes) -> Iterable[bytes]:
        self.datagrams.append(datagram)
        return (datagram,)

    # Streams

    def received(self, stream_id: int) -> ReceivedStream:
        return self.streams.setdefault(stream_id, ReceivedStream())

    def send(self, stream_id: int, data: bytes, *, ended: bool = False) -> None:
        """Send on a stream, or begin it: 0, 4, 8 ... for requests, 2, 6, 10 ... unidirectional."""
        self.quic.send_stream_data(stream_id, data, ended)
        self.flush()

    def open(self, data: bytes, *, ended: bool = False) -> int:
        """Begin a request stream with these bytes."""
        stream_id: int = self.quic.get_next_available_stream_id()
        self.send(stream_id, data, ended=ended)
        return stream_id

    def section(self, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
        """A HEADERS frame."""
        return frame(HEADERS, self.encoder.encode(0, list(fields))[1])

    def request(
        self, fields: Sequence[tuple[bytes, bytes]] = GET, body: bytes | None = None
    ) -> int:
        data = self.section(fields)
        if body is not None:
            data += frame(DATA, body)
        return self.open(data, ended=True)

    async def response(self, stream_id: int) -> ReceivedStream:
        """The stream, once the server has ended or reset it."""
        stream = self.received(stream_id)
        await self.wait_until(lambda: stream.ended or stream.reset_code is not None)
        return stream

    async def assert_serves(self) -> None:
        """The connection is as good as new: a request is answered."""
        stream = await self.response(self.request())
        assert (stream.status, stream.body) == (200, HELLO)

    async def silence(self) -> None:
        """Whatever was sent so far was read, for the server keeps the order of datagrams."""
        async with asyncio.timeout(PATIENCE):
            await self.ping()

    def event_received(self, event: QuicEvent) -> None:
        match event:
            case StreamDataReceived(stream_id=stream_id, data=data, end_stream=ended):
                stream = self.received(stream_id)
                stream.data += data
                stream.ended = stream.ended or ended
            case StreamReset(stream_id=stream_id, error_code=code):
                self.received(stream_id).reset_code = code
            case StopSendingReceived(stream_id=stream_id, error_code=code):
                self.received(stream_id).stop_code = code

"""An HTTP/3 engine and a client in memory: no sockets, a clock of their own, every byte the test's.

The client is aioquic's QUIC with frames written by hand, so that a test can send what no client
library would, and see what no library would show: error codes, single frames, GOAWAYs. `network`
is asked about each datagram on its way and returns those that arrive.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import pylsqpack
from aioquic.buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch

from asgiri.config import FlowConfig, Http3Config, TlsConfig
from asgiri.ipc.connection_id import ConnectionIdCodec, ConnectionIdMint
from asgiri.ipc.tokens import QuicSecrets, ResetTokens
from asgiri.worker.protocol import http3_frames as frames
from asgiri.worker.protocol.events import Event
from asgiri.worker.protocol.http3 import Http3Connection
from asgiri.worker.protocol.http3_server import Http3Server
from tests.support.certificates import certificates
from tests.support.quic_client import MeteredQuicConnection, client_configuration

SERVER_ADDRESS = ("192.0.2.1", 443)
CLIENT_ADDRESS = ("198.51.100.7", 50000)
WORKER_ID = 0x01020304
LATENCY = 0.01
Network = Callable[[bytes], Iterable[bytes]]

GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/")]
POST = [(b":method", b"POST"), *GET[1:]]
SETTINGS = frames.write_settings({})


@functools.cache
def secrets() -> QuicSecrets:
    return QuicSecrets.derive(bytes(range(32)))


def codec() -> ConnectionIdCodec:
    return ConnectionIdCodec(secrets().connection_id_key, server_id=secrets().server_id)


def make_server(
    config: Http3Config | None = None, flow: FlowConfig | None = None, **tls: Any
) -> Http3Server:
    files = certificates()
    return Http3Server(
        config=config or Http3Config(),
        flow=flow or FlowConfig(),
        tls=TlsConfig(
            **{"certfile": (str(files.certfile),), "keyfile": (str(files.keyfile),), **tls}
        ),
        mint=ConnectionIdMint(codec(), WORKER_ID, random=os.urandom),
        reset_tokens=ResetTokens(secrets().reset_key),
    )


default_server = functools.cache(make_server)


class ReceivedStream:
    """What the server sent on a stream."""

    def __init__(self) -> None:
        self.data = b""
        self.ended = False
        self.reset_code: int | None = None
        self.stop_code: int | None = None

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """Complete frames, in order."""
        found = []
        offset = 0
        while offset < len(self.data):
            kind, start = frames.read_integer(self.data, offset)
            size, start = frames.read_integer(self.data, start)
            if start < 0 or start + size > len(self.data):
                break
            found.append((kind, self.data[start : start + size]))
            offset = start + size
        return found

    @property
    def heads(self) -> list[list[tuple[bytes, bytes]]]:
        decoder = pylsqpack.Decoder(0, 0)
        return [
            decoder.feed_header(0, payload)[1]
            for kind, payload in self.frames
            if kind == frames.HEADERS
        ]

    @property
    def status(self) -> int:
        """Of the last head that has one."""
        return [int(head[0][1]) for head in self.heads if head[0][0] == b":status"][-1]

    @property
    def body(self) -> bytes:
        return b"".join(payload for kind, payload in self.frames if kind == frames.DATA)


class Pair:
    """Both ends of a connection."""

    def __init__(
        self,
        *,
        http3: dict[str, Any] | None = None,
        flow: dict[str, Any] | None = None,
        tls: dict[str, Any] | None = None,
        client: dict[str, Any] | None = None,
        network: Network | None = None,
        engine_of: Callable[[QuicConnection], Http3Connection] | None = None,
        connect: bool = True,
    ) -> None:
        if http3 or flow or tls:
            server = make_server(Http3Config(**http3 or {}), FlowConfig(**flow or {}), **tls or {})
        else:
            server = default_server()
        self.now = 1000.0
        self.network: Network = network or (lambda datagram: (datagram,))
        self.client = MeteredQuicConnection(configuration=client_configuration(**client or {}))
        self.engine = (
            engine_of(self.client)
            if engine_of
            else server.accept(self.client.original_destination_connection_id)
        )
        self.quic = self.engine._quic
        self.events: list[Event] = []
        """Of the engine, since they were last taken."""
        self.streams: dict[int, ReceivedStream] = {}
        self.client_address: Any = CLIENT_ADDRESS
        self.handshake_complete = False
        self.closed: ConnectionTerminated | None = None
        """What the client was told in a CONNECTION_CLOSE."""
        self.encoder = pylsqpack.Encoder()
        if connect:
            self.client.connect(SERVER_ADDRESS, now=self.now)
            self.run()
            assert self.handshake_complete, self.closed
            assert self.engine.handshake_complete
            self.client.send_stream_data(2, b"\x00" + SETTINGS)
            self.run()
            assert self.take_events() == []

    # Time

    def run(self, seconds: float = 0.3) -> list[Event]:
        """Let both speak until neither has anything to say, at most for so long."""
        end = self.now + seconds
        while self.now < end:
            if not self.step():
                due = [at for at in (self.client.get_timer(), self.engine.timer()) if at]
                if self.closed or not due or min(due) > end:
                    break
                self.now = max(self.now, min(due))
        return self.events

    def step(self) -> bool:
        """One flight of each; True when anything was said."""
        for end_timer, handle in (
            (self.client.get_timer(), self.client.handle_timer),
            (self.engine.timer(), self.handle_timer),
        ):
            if end_timer is not None and end_timer <= self.now:
                handle(self.now)
        sent = [datagram for datagram, _ in self.client.datagrams_to_send(self.now)]
        self.take_client_events()
        self.to_server(*sent)
        answers = self.from_server()
        self.now += LATENCY
        for answer in answers:
            for arriving in self.network(answer):
                self.client.receive_datagram(arriving, SERVER_ADDRESS, self.now)
        self.take_client_events()
        return bool(sent or answers)

    def say(self) -> None:
        """Deliver what the client has to say, and nothing to the client."""
        self.to_server(*[datagram for datagram, _ in self.client.datagrams_to_send(self.now)])

    def handle_timer(self, now: float) -> None:
        self.events += self.engine.handle_timer(now)

    def to_server(self, *datagrams: bytes) -> None:
        """Deliver datagrams to the engine, by way of the network."""
        for datagram in datagrams:
            for arriving in self.network(datagram):
                self.events += self.engine.receive_datagram(arriving, self.client_address, self.now)

    def from_server(self) -> list[bytes]:
        """What the engine has to send now."""
        datagrams = [datagram for datagram, _ in self.engine.datagrams_to_send(self.now)]
        self.events += self.engine.sent_events()
        return datagrams

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    # The client

    def open(self, data: bytes = b"", *, ended: bool = False) -> int:
        """Begin a request stream with exactly these bytes; its ID."""
        stream_id = self.client.get_next_available_stream_id()
        self.client.send_stream_data(stream_id, data, ended)
        return stream_id

    def open_uni(self, data: bytes) -> int:
        stream_id = self.client.get_next_available_stream_id(is_unidirectional=True)
        if stream_id == 2:
            raise AssertionError("stream 2 is the control stream")
        self.client.send_stream_data(stream_id, data)
        return stream_id

    def send(self, stream_id: int, data: bytes, *, ended: bool = False) -> None:
        self.client.send_stream_data(stream_id, data, ended)

    def section(self, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
        """A HEADERS frame."""
        return frames.frame(frames.HEADERS, self.encoder.encode(0, list(fields))[1])

    def request(
        self, fields: Iterable[tuple[bytes, bytes]] = GET, body: bytes | None = None
    ) -> int:
        """A whole request; its stream."""
        data = self.section(fields)
        if body is not None:
            data += frames.frame(frames.DATA, body)
        return self.open(data, ended=True)

    def received(self, stream_id: int) -> ReceivedStream:
        return self.streams.setdefault(stream_id, ReceivedStream())

    def take_client_events(self) -> None:
        while (event := self.client.next_event()) is not None:
            self._client_event(event)
        ending = self.client._close_event
        if ending is not None and not self.client._close_pending:
            self.closed = ending

    def _client_event(self, event: QuicEvent) -> None:
        match event:
            case HandshakeCompleted():
                self.handshake_complete = True
            case StreamDataReceived(stream_id=stream_id, data=data, end_stream=ended):
                stream = self.received(stream_id)
                stream.data += data
                stream.ended = stream.ended or ended
            case StreamReset(stream_id=stream_id, error_code=code):
                self.received(stream_id).reset_code = code
            case StopSendingReceived(stream_id=stream_id, error_code=code):
                self.received(stream_id).stop_code = code
            case ConnectionTerminated():
                self.closed = event

    def forge(self, payload: bytes, epoch: Epoch = Epoch.ONE_RTT) -> bytes:
        """A packet of the client's with exactly these frames."""
        client = self.client
        kinds = {
            Epoch.INITIAL: QuicPacketType.INITIAL,
            Epoch.HANDSHAKE: QuicPacketType.HANDSHAKE,
            Epoch.ONE_RTT: QuicPacketType.ONE_RTT,
        }
        builder = QuicPacketBuilder(
            host_cid=client.host_cid,
            is_client=True,
            max_datagram_size=client._max_datagram_size,
            packet_number=client._packet_number,
            peer_cid=client._peer_cid.cid,
            peer_token=client._peer_token,
            version=client._version,
        )
        builder.start_packet(kinds[epoch], client._cryptos[epoch])
        buffer: Buffer = builder.start_frame(QuicFrameType.PADDING, capacity=len(payload))
        buffer.seek(buffer.tell() - 1)  # the type is the payload's own
        buffer.push_bytes(payload)
        (datagram,), _ = builder.flush()
        client._packet_number = builder.packet_number
        return datagram

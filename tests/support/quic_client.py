"""A QUIC client for tests, on aioquic: what it did is visible, and what a network does to it can be
done.

`QuicClient` drives one connection over a connected UDP socket: a reply from another address than
the one that was asked never arrives, as with real clients. `http3_client` puts HTTP on top of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any

from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    QuicConnection,
)
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    PingAcknowledged,
    QuicEvent,
)
from aioquic.quic.packet import QuicFrameType, QuicHeader, QuicPacketType, pull_quic_header

from tests.support.certificates import certificates

PATIENCE = 10.0
"""Longest wait for anything the server should do, in seconds."""
RECEIVE_SIZE = 65536
Shaper = Callable[[bytes], Iterable[bytes]]


class MeteredQuicConnection(QuicConnection):
    """Gives receive credit when it is told to, not when data arrives: a client that reads slowly,
    or not at all."""

    grants_itself = True
    """As aioquic does: all that arrives counts as read."""

    def grant(self, stream_id: int, size: int) -> None:
        """The test took this many bytes of a stream."""
        self._local_max_data.value += size
        if (stream := self._streams.get(stream_id)) is not None:
            stream.max_stream_data_local += size

    def _write_connection_limits(self, builder: Any, space: Any) -> None:
        limit = self._local_max_data
        if self.grants_itself:
            super()._write_connection_limits(builder=builder, space=space)
        elif limit.value - limit.sent >= self._configuration.max_data // 4:
            buffer = builder.start_frame(
                limit.frame_type,
                capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            buffer.push_uint_var(limit.value)
            limit.sent = limit.value

    def _write_stream_limits(self, builder: Any, space: Any, stream: Any) -> None:
        ahead = stream.max_stream_data_local - stream.max_stream_data_local_sent
        if self.grants_itself:
            super()._write_stream_limits(builder=builder, space=space, stream=stream)
        elif (
            stream.max_stream_data_local and ahead >= self._configuration.max_stream_data // 4
        ) and not stream.receiver.is_finished:
            buffer = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            buffer.push_uint_var(stream.stream_id)
            buffer.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local

    # What aioquic knows and does not tell

    @property
    def server_connection_ids(self) -> list[bytes]:
        """Those the server issued that are not retired; the first is in use."""
        return [entry.cid for entry in [self._peer_cid, *self._peer_cid_available]]

    @property
    def reset_tokens(self) -> set[bytes]:
        entries = [self._peer_cid, *self._peer_cid_available]
        return {entry.stateless_reset_token for entry in entries} - {b""}

    def unsent(self, stream_id: int) -> int:
        """Bytes of a stream that wait for the server's windows or the network."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sender._reset_error_code is not None:
            return 0
        return stream.sender._buffer_stop - stream.sender.highest_offset

    @property
    def unacknowledged(self) -> int:
        """Bytes of all streams that the server has not acknowledged."""
        return sum(len(stream.sender._buffer) for stream in self._streams.values())


def client_configuration(**options: Any) -> QuicConfiguration:
    """Trusts the tests' certificate authority; options are QuicConfiguration's."""
    options = {"alpn_protocols": ["h3"], "server_name": "localhost", **options}
    configuration = QuicConfiguration(is_client=True, **options)
    if configuration.verify_mode != ssl.CERT_NONE:
        configuration.load_verify_locations(cafile=str(certificates().authority))
    return configuration


class QuicClient:
    """One connection. Subclasses handle its events."""

    patience = PATIENCE

    connection_type: type[MeteredQuicConnection] = MeteredQuicConnection

    def __init__(
        self,
        connected: socket.socket,
        configuration: QuicConfiguration | None = None,
        *,
        shape_out: Shaper | None = None,
        shape_in: Shaper | None = None,
    ) -> None:
        """Take over a connected UDP socket. A shaper is given each datagram and returns those to
        let through, in order; it may keep some for later."""
        self.socket = connected
        self.socket.setblocking(False)
        self.quic = self.connection_type(configuration=configuration or client_configuration())
        self.shape_out = shape_out
        self.shape_in = shape_in
        self.closed = asyncio.Event()
        self.handshake_complete = False
        self.termination: ConnectionTerminated | None = None
        """Why the connection ended, unless `stateless_reset`."""
        self.stateless_reset = False
        """The server answered with a token of one of its connection IDs (RFC 9000 §10.3)."""
        self.retries: list[QuicHeader] = []
        self.version_negotiations: list[list[int]] = []
        """Versions of each Version Negotiation packet."""
        self.datagrams_in = 0
        self.datagrams_out = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self._address = connected.getpeername()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._loop.add_reader(self.socket.fileno(), self._readable)

    @classmethod
    def open_socket(
        cls, host: str, port: int, *, local_address: str | None = None
    ) -> socket.socket:
        """Return a UDP socket connected to the server."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_DGRAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        if local_address is not None:
            opened.bind((local_address, 0))
        opened.connect((host, port))
        return opened

    async def handshake(self) -> None:
        """Return when the handshake is complete; ConnectionError when it fails."""
        self.quic.connect(self._address, now=self._loop.time())
        self.flush()
        await self.wait_until(lambda: self.handshake_complete)

    # What happens to a client

    def rebind(self, local_address: str | None = None) -> tuple[str, int]:
        """Go on from another port, and address if given, unasked, as behind a NAT; return it."""
        host, port = self._address[:2]
        replacement = self.open_socket(host, port, local_address=local_address)
        replacement.setblocking(False)
        self._loop.remove_reader(self.socket.fileno())
        self.socket.close()
        self.socket = replacement
        self._loop.add_reader(self.socket.fileno(), self._readable)
        return self.local_address

    async def migrate(self, local_address: str | None = None) -> tuple[str, int]:
        """Move to another address on purpose: with another connection ID (RFC 9000 §9.5)."""
        await self.wait_until(lambda: len(self.quic.server_connection_ids) > 1)
        self.quic.change_connection_id()
        address = self.rebind(local_address)
        await self.ping()
        return address

    async def change_connection_id(self) -> bytes:
        """Use the next connection ID of the server's and retire this one; return it."""
        await self.wait_until(lambda: len(self.quic.server_connection_ids) > 1)
        self.quic.change_connection_id()
        await self.ping()
        return self.quic.server_connection_ids[0]

    async def ping(self) -> None:
        """Return when the server has acknowledged something sent after this call."""
        uid = len(self._pings)
        answered = self._pings[uid] = self._loop.create_future()
        self.quic.send_ping(uid)
        self.flush()
        await self.wait_until(answered.done)

    def send_raw(self, datagram: bytes) -> None:
        """Send exactly this."""
        self.datagrams_out += 1
        self.bytes_out += len(datagram)
        with contextlib.suppress(ConnectionError):
            self.socket.send(datagram)

    # Waiting

    async def wait_change(self) -> None:
        """Return when something has arrived or ended since this call; ConnectionError at the
        end."""
        self._changed.clear()
        await asyncio.wait_for(self._changed.wait(), self.patience)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when it is true; ConnectionError when the connection ends before."""
        while not condition():
            if self.closed.is_set():
                raise ConnectionError(self.describe_end())
            await self.wait_change()

    async def wait_closed(self) -> None:
        """Return when the connection has ended."""
        await asyncio.wait_for(self.closed.wait(), PATIENCE)

    def describe_end(self) -> str:
        if self.stateless_reset:
            return "stateless reset"
        if self.termination is None:
            return "closed"
        return f"{self.termination.error_code:#x} {self.termination.reason_phrase}"

    # Ending

    def close_quic(self, error_code: int = 0x100, reason: str = "") -> None:
        """Send a CONNECTION_CLOSE."""
        self.quic.close(error_code=error_code, reason_phrase=reason)
        self.flush()

    def vanish(self) -> None:
        """Say nothing more and hear nothing more."""
        self._end()
        if self.socket.fileno() >= 0:
            self._loop.remove_reader(self.socket.fileno())
            self.socket.close()

    @property
    def local_address(self) -> tuple[str, int]:
        return self.socket.getsockname()[:2]

    # For subclasses

    def event_received(self, event: QuicEvent) -> None:
        """Handle an event of aioquic."""

    def ended(self) -> None:
        """The connection has ended, for whatever reason."""

    def flush(self) -> None:
        """Send what is queued, and arm the timer."""
        if self.closed.is_set():
            return
        for datagram, _ in self.quic.datagrams_to_send(self._loop.time()):
            for let_through in self.shape_out(datagram) if self.shape_out else (datagram,):
                self.send_raw(let_through)
        self._take_events()
        self._arm()
        self._changed.set()

    # Internals

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            for _ in range(64):
                datagram = self.socket.recv(RECEIVE_SIZE)
                for let_through in self.shape_in(datagram) if self.shape_in else (datagram,):
                    self._datagram(let_through)
        self.flush()

    def _datagram(self, datagram: bytes) -> None:
        self.datagrams_in += 1
        self.bytes_in += len(datagram)
        self._note_header(datagram)
        if not datagram[0] & 0x80 and datagram[-16:] in self.quic.reset_tokens:
            # aioquic does not know stateless resets. No packet of the server ends like this by
            # chance.
            self.stateless_reset = True
            self._end()
            return
        self.quic.receive_datagram(datagram, self._address, self._loop.time())
        self._take_events()

    def _note_header(self, datagram: bytes) -> None:
        with contextlib.suppress(ValueError):
            header = pull_quic_header(Buffer(data=datagram), host_cid_length=8)
            if header.packet_type is QuicPacketType.RETRY:
                self.retries.append(header)
            elif header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
                self.version_negotiations.append(header.supported_versions)

    def _take_events(self) -> None:
        while (event := self.quic.next_event()) is not None:
            match event:
                case HandshakeCompleted():
                    self.handshake_complete = True
                case PingAcknowledged(uid=uid):
                    self._pings[uid].set_result(None)
                case ConnectionTerminated():
                    self.termination = event
            self.event_received(event)
        # The peer has closed, or we have said that we do: aioquic keeps quiet about it for three
        # timeouts.
        ending = self.quic._close_event
        if ending is not None and not self.quic._close_pending and not self.closed.is_set():
            self.termination = ending
            self._end()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = None if self.closed.is_set() else self.quic.get_timer()
        if at is not None:
            self._timer = self._loop.call_at(at, self._timer_reached)

    def _timer_reached(self) -> None:
        self._timer = None
        # Event loops round: a timer that comes early must not come again at once for ever.
        due = self.quic.get_timer()
        self.quic.handle_timer(max(self._loop.time(), due or 0.0))
        self._take_events()
        self.flush()

    def _end(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self._arm()
            self.ended()
            self._changed.set()

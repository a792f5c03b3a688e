"""HTTP/3, server side of one connection (RFC 9114, 9204, 9220). Sans-IO: datagrams in, events out.

aioquic carries the streams (`quic`), pylsqpack the field sections. The frames are read here and not
by aioquic's H3Connection: that one ends the connection for one malformed request, keeps a HEADERS
frame of any size, decodes a QPACK bomb, and raises in our own calls once the peer has sent
STOP_SENDING.

`http3_streams` has what concerns one request; here is what concerns the connection.
"""

from __future__ import annotations

from typing import Any, Final

from aioquic.quic.events import (
    ConnectionIdIssued,
    ConnectionIdRetired,
    HandshakeCompleted,
    ProtocolNegotiated,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
)
from aioquic.quic.events import StreamReset as QuicStreamReset
from aioquic.quic.packet import QuicErrorCode

from asgiri.config import FlowConfig, Http3Config
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.budget import Budget
from asgiri.worker.protocol.events import ConnectionEnded, Event, PeerViolation
from asgiri.worker.protocol.http3_control import ClientStreams
from asgiri.worker.protocol.http3_frames import (
    GOAWAY,
    ErrorCode,
    FrameViolation,
    Setting,
    StreamType,
    frame,
    write_integer,
    write_settings,
)
from asgiri.worker.protocol.http3_streams import FIRST_UNREACHABLE, RequestStreams
from asgiri.worker.protocol.qpack import BLOCKED_STREAMS, TABLE_SIZE
from asgiri.worker.protocol.quic import SteeredQuicConnection

_LAST_STREAM: Final = FIRST_UNREACHABLE - 4
_REFUSALS: Final = {
    ErrorCode.H3_FRAME_UNEXPECTED: Refusal.HTTP3_BAD_FRAME,
    ErrorCode.H3_FRAME_ERROR: Refusal.HTTP3_BAD_FRAME,
    ErrorCode.H3_SETTINGS_ERROR: Refusal.HTTP3_BAD_FRAME,
    ErrorCode.H3_MISSING_SETTINGS: Refusal.HTTP3_BAD_FRAME,
    ErrorCode.H3_CLOSED_CRITICAL_STREAM: Refusal.HTTP3_CRITICAL_STREAM,
    ErrorCode.H3_EXCESSIVE_LOAD: Refusal.HTTP3_RESET_FLOOD,
    ErrorCode.QPACK_DECOMPRESSION_FAILED: Refusal.HTTP3_COMPRESSION,
    ErrorCode.QPACK_ENCODER_STREAM_ERROR: Refusal.HTTP3_COMPRESSION,
    ErrorCode.QPACK_DECODER_STREAM_ERROR: Refusal.HTTP3_COMPRESSION,
}
"""What ends a connection; all other codes count as HTTP3_PROTOCOL_ERROR."""
_QUIC_REFUSALS: Final[dict[int, Refusal]] = {
    QuicErrorCode.CRYPTO_BUFFER_EXCEEDED: Refusal.QUIC_CRYPTO_BUFFER,
    QuicErrorCode.INTERNAL_ERROR: Refusal.QUIC_FRAME_FLOOD,
}
"""What of QUIC's has a counter of its own: that one code we use for limits of our own."""

RETIRED_BURST: Final = 64
RETIRED_RATE: Final = 4.0
"""Connection IDs that a client may retire: at once, and per second. Who moves to another network
retires one, and a migration each second is more than a phone can do. Each makes us mint another and
remember the old one for a while."""


class Http3Connection(RequestStreams):
    """An `HttpEngine` over datagrams.

    Call `receive_datagram` or `handle_timer`, carry the events out, call `datagrams_to_send`, then
    `sent_events`. Connection IDs come and go in either: `take_connection_id_changes`.
    """

    http_version = "3"

    def __init__(
        self, quic: SteeredQuicConnection, *, config: Http3Config, flow: FlowConfig
    ) -> None:
        super().__init__(quic, config=config, flow=flow)
        self.connection_id_changes: list[tuple[bytes, bool]] = []
        """Connection IDs that came (True) or went (False), for the transport to take."""
        self.handshake_complete = False
        self._ended = False
        self._draining = False
        self._retired = Budget(burst=RETIRED_BURST, per_second=RETIRED_RATE)
        self._client_streams = ClientStreams(self._sections)
        self._control_stream = self._encoder_stream = self._decoder_stream = -1

    # Receiving

    def receive_datagram(self, datagram: bytes, address: Any, now: float) -> list[Event]:
        """Feed a datagram from the peer. Never raises."""
        self._now = now
        self._quic.receive_datagram(datagram, address, now)
        return self._pull_events()

    def timer(self) -> float | None:
        """When to call `handle_timer` next."""
        return self._quic.get_timer()

    def handle_timer(self, now: float) -> list[Event]:
        """The time that `timer` named has come."""
        self._now = now
        self._quic.handle_timer(now)
        self.output_is_due = True
        return self._pull_events()

    def take_connection_id_changes(self) -> list[tuple[bytes, bool]]:
        """Connection IDs to listen to from now (True), or no longer (False)."""
        changes, self.connection_id_changes = self.connection_id_changes, []
        return changes

    # State

    def is_at(self, address: Any) -> bool:
        """The peer is at this address, and has shown that it is."""
        return self._quic.is_at(address)

    @property
    def has_begun(self) -> bool:
        """Something that came could be decrypted."""
        return self._quic.has_begun

    @property
    def connection_ids(self) -> list[bytes]:
        """Those of ours that the peer may use now."""
        return self._quic.host_connection_ids

    @property
    def close_is_pending(self) -> bool:
        """The next datagram to send is a CONNECTION_CLOSE."""
        return self._quic.close_is_pending

    @property
    def is_closed(self) -> bool:
        """Nothing more will be received or sent."""
        return self._quic.is_ending and not self._quic.close_is_pending

    def tls_extension(self) -> dict[str, Any]:
        """Value of the `tls` extension of ASGI scopes; known when the handshake is complete."""
        return self._quic.tls_extension()

    # Sending

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """Everything queued that congestion control, pacing and the peer's windows allow now."""
        quic = self._quic
        self.output_is_due = False
        if self._answered_early:
            self._stop_early_requests()
        if output := self._sections.take_output():
            quic.send(self._decoder_stream, output)
        datagrams = quic.datagrams_to_send(now)
        # Sending issues connection IDs, and may be what fails.
        self._events = self._pull_events()
        self._resume_paused()
        return datagrams

    def sent_events(self) -> list[Event]:
        """What sending brought about."""
        return self._take_events()

    # Ending

    def begin_drain(self) -> list[Event]:
        """GOAWAY with the highest ID there is: requests that are under way are still served."""
        if not self._draining:
            self._draining = True
            self._goaway(_LAST_STREAM)
        return []

    def finish_drain(self) -> list[Event]:
        """GOAWAY with the first ID that is not served; the connection ends when it is empty."""
        if self._refuse_from == FIRST_UNREACHABLE:
            self._draining = True
            self._refuse_from = self._next_stream
            self._goaway(self._refuse_from)
        return self._pull_events()

    def close(self) -> list[Event]:
        self._quic.finish(ErrorCode.H3_NO_ERROR, "")
        self.output_is_due = True
        return self._pull_events()

    @property
    def is_idle(self) -> bool:
        """No request is open, and all that was answered has arrived."""
        if self._ended:
            return True
        # A request that is being discarded would wait for a peer that may never end it.
        if any(not request.discarding for request in self._requests.values()):
            return False
        return not self._quic.has_unfinished_responses

    # Events of QUIC

    def _pull_events(self) -> list[Event]:
        quic = self._quic
        while (event := quic.next_event()) is not None:
            if self._ended:
                continue
            try:
                if type(event) is StreamDataReceived:
                    if event.stream_id & 2:
                        self._client_stream_data(event.stream_id, event.data, event.end_stream)
                    else:
                        self._request_data(event.stream_id, event.data, event.end_stream)
                else:
                    self._other_event(event)
            except FrameViolation as violation:
                self._violation(violation)
        # Who has not heard of the GOAWAY cannot know that a request of it may be repeated.
        if (
            self._refuse_from != FIRST_UNREACHABLE
            and self.is_idle
            and (not quic.held(self._control_stream) or quic.is_silent)
        ):
            quic.finish(ErrorCode.H3_NO_ERROR, "")
        if quic.is_ending and not self._ended:
            self._end()
        return self._take_events()

    def _other_event(self, event: QuicEvent) -> None:
        match event:
            case QuicStreamReset(stream_id=stream_id):
                if stream_id & 2:
                    self._client_streams.reset(stream_id)
                    self._quic.release(stream_id, 0)
                else:
                    self._request_reset(stream_id)
            case StopSendingReceived(stream_id=stream_id):
                if stream_id & 2:
                    raise FrameViolation(
                        ErrorCode.H3_CLOSED_CRITICAL_STREAM, f"STOP_SENDING for stream {stream_id}"
                    )
                self._request_stopped(stream_id)
            case ConnectionIdIssued(connection_id=connection_id):
                self.connection_id_changes.append((connection_id, True))
            case ConnectionIdRetired(connection_id=connection_id):
                self.connection_id_changes.append((connection_id, False))
                if not self._retired.spend(self._now):
                    self._refuse_connection(
                        Refusal.QUIC_FRAME_FLOOD,
                        ErrorCode.H3_EXCESSIVE_LOAD,
                        f"more than {RETIRED_RATE:.0f} retired connection IDs a second",
                    )
            case ProtocolNegotiated():
                self._open_streams()
            case HandshakeCompleted():
                self.handshake_complete = True
                self._quic.forget_handshake()

    def _violation(self, violation: FrameViolation) -> None:
        reason = _REFUSALS.get(violation.code, Refusal.HTTP3_PROTOCOL_ERROR)
        self._refuse_connection(reason, violation.code, violation.detail)

    def _refuse_connection(self, reason: Refusal, code: ErrorCode, detail: str) -> None:
        self._events.append(PeerViolation(reason, detail))
        self._quic.finish(code, detail)
        self._end()

    def _end(self) -> None:
        """Nothing more is read. Both sides' streams are gone with the connection."""
        quic = self._quic
        self._ended = True
        self.output_is_due = True
        self._requests.clear()
        self._paused.clear()
        self._answered_early.clear()
        if quic.peer_is_to_blame:
            reason = (
                Refusal.QUIC_PROTOCOL_ERROR
                if self.handshake_complete
                else Refusal.QUIC_HANDSHAKE_FAILED
            )
            if quic.fault is None:
                reason = _QUIC_REFUSALS.get(quic.end_code, reason)
            self._events.append(PeerViolation(reason, quic.end_reason))
        self._events.append(ConnectionEnded(quic.end_reason))

    # Unidirectional streams

    def _open_streams(self) -> None:
        quic = self._quic
        self._control_stream = quic.open_uni_stream()
        self._encoder_stream = quic.open_uni_stream()
        self._decoder_stream = quic.open_uni_stream()
        settings = write_settings(
            {
                Setting.QPACK_MAX_TABLE_CAPACITY: TABLE_SIZE,
                Setting.QPACK_BLOCKED_STREAMS: BLOCKED_STREAMS,
                Setting.MAX_FIELD_SECTION_SIZE: self._largest_section,
                Setting.ENABLE_CONNECT_PROTOCOL: 1,
            }
        )
        quic.send(self._control_stream, write_integer(StreamType.CONTROL) + settings)
        quic.send(self._encoder_stream, write_integer(StreamType.QPACK_ENCODER))
        quic.send(self._decoder_stream, write_integer(StreamType.QPACK_DECODER))
        if self._draining:
            self._goaway(min(_LAST_STREAM, self._refuse_from))
        self.output_is_due = True

    def _goaway(self, stream_id: int) -> None:
        self._quic.send(self._control_stream, frame(GOAWAY, write_integer(stream_id)))
        self.output_is_due = True

    def _client_stream_data(self, stream_id: int, data: bytes, fin: bool) -> None:
        streams = self._client_streams
        self._grant(stream_id, len(data))
        streams.receive(stream_id, data, ended=fin)
        while streams.unblocked:
            self._resume(streams.unblocked.pop(0))
        while streams.unwanted:
            # RFC 9114 §6.2: "the recipient MUST either abort reading of the stream or discard".
            self._quic.stop_receiving(streams.unwanted.pop(), ErrorCode.H3_STREAM_CREATION_ERROR)
            self.output_is_due = True
        for prioritized, value in streams.control.priorities:
            self._priority_update(prioritized, value)
        streams.control.priorities.clear()

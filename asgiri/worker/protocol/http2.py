"""HTTP/2, server side of one connection. Sans-IO: bytes in, events out, calls in, bytes out.

h2 owns framing, HPACK, stream states and windows (RFC 9113, RFC 7541). This module owns what a
server adds: the translation to the events shared by all versions, streams refused one by one (h2
would end the connection), a bounded queue per stream that leaves in the order of RFC 9218 as
windows allow, GOAWAY in two phases (h2 ends its connection with the first), and the limits on what
a peer may make us do for nothing.

Opening windows follows the application: bytes are acknowledged when it has taken them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hpack import NeverIndexedHeaderTuple

from asgiri.config import FlowConfig, Http2Config
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.budget import Budget
from asgiri.worker.protocol.events import (
    BodyEnded,
    BodyReceived,
    ConnectionEnded,
    Event,
    Headers,
    PeerViolation,
    RequestReceived,
    ResponseHead,
    StreamPaused,
    StreamReset,
    StreamResumed,
)
from asgiri.worker.protocol.headers import (
    Malformed,
    parse_request_untrusted,
    parse_trailers_untrusted,
    take_from_length,
)
from asgiri.worker.protocol.http2_frames import (
    FRAME_HEADER_SIZE,
    ErrorCode,
    Flag,
    Frame,
    FrameCutter,
    FrameType,
    FrameViolation,
    frame,
)
from asgiri.worker.protocol.priority import DEFAULT, Priority, parse_priority_untrusted

MAX_STREAM_ID: Final = 2**31 - 1
WRITE_BUDGET: Final = 65536
"""Bytes of bodies given out by one `data_to_send`: the transport's buffer decides whether more are
wanted now."""
CONTROL_BURST: Final = 1000
CONTROL_PER_SECOND: Final = 50.0
"""Frames that ask for work but carry none of it: SETTINGS, PING, PRIORITY, RST_STREAM, empty DATA,
unknown ones (CVE-2019-9511 to 9518). A browser sends about 5 per page, nghttp2 one WINDOW_UPDATE
for each 32 KiB it receives."""
RESET_PERIOD: Final = 60.0
"""Seconds that `Http2Config.max_resets` is counted over."""
MAX_EARLY_PRIORITIES: Final = 128
"""Priorities kept for streams that have not begun (RFC 9218 §7.1 lets us forget them)."""
NO_RFC7540_PRIORITIES: Final = 0x9
DEFAULT_WINDOW: Final = 65535

_BODILESS: Final = (204, 205, 304)
_SECRET: Final = frozenset((b"set-cookie", b"authorization", b"proxy-authenticate"))

_STATUS: Final = {status: (b":status", b"%d" % status) for status in range(100, 1000)}
_FLOOD_REASONS: Final[dict[int | None, Refusal]] = {
    FrameType.SETTINGS: Refusal.HTTP2_SETTINGS_FLOOD,
    FrameType.PING: Refusal.HTTP2_PING_FLOOD,
    FrameType.PRIORITY: Refusal.HTTP2_PRIORITY_FLOOD,
    FrameType.PRIORITY_UPDATE: Refusal.HTTP2_PRIORITY_FLOOD,
    FrameType.RST_STREAM: Refusal.HTTP2_RESET_FLOOD,
}
_ERROR_REASONS: Final[dict[int, Refusal]] = {
    ErrorCode.FLOW_CONTROL_ERROR: Refusal.HTTP2_FLOW_CONTROL,
    ErrorCode.FRAME_SIZE_ERROR: Refusal.HTTP2_FRAME_SIZE,
    ErrorCode.COMPRESSION_ERROR: Refusal.HTTP2_COMPRESSION,
    ErrorCode.STREAM_CLOSED: Refusal.HTTP2_STREAM_CLOSED,
    ErrorCode.ENHANCE_YOUR_CALM: Refusal.HTTP2_HEADERS_TOO_LARGE,
}


class _Stream:
    """One exchange: what the peer may still send, and what waits to be sent."""

    __slots__ = (
        "blocked_since",
        "ending",
        "head_only",
        "id",
        "length_left",
        "local_ended",
        "paused",
        "priority",
        "queue",
        "queued",
        "released",
        "remote_ended",
        "trailers",
        "tunnel",
        "turn",
        "unacknowledged",
    )

    def __init__(self, stream_id: int, *, head_only: bool, priority: Priority) -> None:
        self.id = stream_id
        self.head_only = head_only
        self.priority = priority
        self.queue: deque[bytes | memoryview] = deque()
        self.queued = 0
        self.ending = False
        """The application has given everything; END_STREAM goes with the last frame."""
        self.trailers: Headers | None = None
        self.local_ended = False
        self.remote_ended = False
        self.paused = False
        self.unacknowledged = 0
        """Bytes received whose credit the peer has not got back."""
        self.turn = 0
        """When an incremental stream was last served; others stay at 0."""
        self.length_left: int | None = None
        """Bytes of the response that its content-length still promises."""
        self.tunnel = False
        self.released = False
        """The application's call has returned."""
        self.blocked_since: float | None = None
        """Since when the peer's windows let nothing more of the queue go."""


class Http2Connection:
    """An `events.HttpEngine` over h2. `now` gives monotonic seconds, for the limits by time."""

    http_version = "2"

    def __init__(self, config: Http2Config, flow: FlowConfig, *, now: Callable[[], float]) -> None:
        self._config = config
        self._flow = flow
        self._now = now
        self._cutter = FrameCutter(max_header_block=config.max_header_list_size)
        self._streams: dict[int, _Stream] = {}
        """Streams of which one side is open, or whose application call has not returned."""
        self._sending: dict[int, _Stream] = {}
        """Those with something queued."""
        self._unfinished_uploads: list[_Stream] = []
        """Answered completely while the peer still sends its body; reset at the next flush."""
        self._early_priorities: dict[int, Priority] = {}
        self._sent_events: list[Event] = []
        self._turn = 0
        self._highest_id = 0
        self._last_id = MAX_STREAM_ID
        """Streams above are refused (our GOAWAY)."""
        self._peer_going = False
        self._draining = False
        self._ended = False
        self._control = Budget(burst=CONTROL_BURST, per_second=CONTROL_PER_SECOND)
        self._resets = Budget(burst=config.max_resets, per_second=config.max_resets / RESET_PERIOD)
        self._out: list[bytes] = []
        """Frames written here, in line behind what h2 has queued."""
        self._h2 = self._new_connection()
        self._h2.initiate_connection()
        self._announce_settings()

    # Receiving

    def receive_data(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if self._ended:
            return events
        try:
            for received in self._cutter.receive_untrusted(data):
                self._receive_frame(received, events)
                if self._ended:
                    break
        except FrameViolation as violation:
            self._fail(violation.code, violation.reason, violation.detail, events)
        return events

    def receive_eof(self) -> list[Event]:
        if self._ended:
            return []
        self._ended = True
        return [ConnectionEnded("closed by the peer")]

    def acknowledge(self, stream_id: int, credit: int) -> list[Event]:
        if (stream := self._streams.get(stream_id)) is not None and not self._ended:
            self._acknowledge(stream, min(credit, stream.unacknowledged))
        return []

    # Sending

    def send_informational(self, stream_id: int, status: int, headers: Headers) -> list[Event]:
        if stream := self._writable(stream_id):
            self._h2.send_headers(stream.id, [_STATUS[status], *headers])
        return []

    def send_response(
        self, stream_id: int, head: ResponseHead, body: bytes, *, ended: bool
    ) -> list[Event]:
        if (stream := self._writable(stream_id)) is None:
            return []
        bodiless = stream.head_only or head.status in _BODILESS
        if not bodiless and head.content_length is not None:
            stream.length_left = take_from_length(head.content_length, len(body), ended=ended)
        # Without a body the head is the end, whatever the application still sends for one.
        finished = bodiless or (ended and not body)
        fields = [_STATUS[head.status], *map(_protect, head.headers)]
        self._h2.send_headers(stream.id, fields, end_stream=finished)
        if finished:
            self._local_end(stream)
            return []
        return self._enqueue(stream, body, ended=ended)

    def send_body(self, stream_id: int, data: bytes, *, ended: bool) -> list[Event]:
        if (stream := self._writable(stream_id)) is None:
            return []
        if stream.length_left is not None:
            stream.length_left = take_from_length(stream.length_left, len(data), ended=ended)
        return self._enqueue(stream, data, ended=ended)

    def send_trailers(self, stream_id: int, headers: Headers) -> list[Event]:
        if (stream := self._writable(stream_id)) is None:
            return []
        if stream.length_left is not None:
            take_from_length(stream.length_left, 0, ended=True)
        stream.trailers = headers
        return self._enqueue(stream, b"", ended=True)

    def accept_tunnel(self, stream_id: int, headers: Headers) -> list[Event]:
        if stream := self._writable(stream_id):
            stream.tunnel = True
            self._h2.send_headers(stream.id, [_STATUS[200], *headers])
        return []

    def reset_stream(self, stream_id: int) -> list[Event]:
        if (stream := self._streams.get(stream_id)) and not (stream.local_ended or self._ended):
            self._reset(stream, ErrorCode.INTERNAL_ERROR)
        return []

    def send_ping(self, payload: bytes) -> None:
        """Ask the peer for a sign of life; `payload` is 8 bytes."""
        if not self._ended:
            self._h2.ping(payload)

    def data_to_send(self) -> bytes:
        """At most about WRITE_BUDGET bytes of bodies: call again until it gives b""."""
        if not self._ended:
            self._write_bodies()
            self._reset_unfinished_uploads()
        written = self._h2.data_to_send()
        if self._out:
            written = b"".join((*self._out, written))
            self._out.clear()
        return written

    def sent_events(self) -> list[Event]:
        events, self._sent_events = self._sent_events, []
        return events

    # Ending

    def release(self, stream_id: int) -> list[Event]:
        if (stream := self._streams.get(stream_id)) is None or self._ended:
            return []
        stream.released = True
        self._acknowledge(stream, stream.unacknowledged)
        if stream.local_ended and not stream.remote_ended:
            self._unfinished_uploads.append(stream)
        self._forget_if_done(stream)
        return self._end_if_empty()

    def begin_drain(self) -> list[Event]:
        # "A server that is attempting to gracefully shut down a connection SHOULD send an initial
        # GOAWAY frame with the last stream identifier set to 2^31-1" (RFC 9113 §6.8).
        if not self._ended and not self._draining:
            self._draining = True
            self._write_goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR)
        return []

    def finish_drain(self) -> list[Event]:
        if self._ended or self._last_id != MAX_STREAM_ID:
            return []
        self._last_id = self._highest_id
        self._write_goaway(self._last_id, ErrorCode.NO_ERROR)
        return self._end_if_empty()

    def close(self) -> list[Event]:
        if self._ended:
            return []
        self._write_goaway(self._highest_id, ErrorCode.NO_ERROR)
        self._ended = True
        return [ConnectionEnded("closed")]

    def drop_stalled(self, timeout: float) -> list[Event]:
        """Give up the streams whose peer has let nothing through for `timeout` seconds; the
        transport asks now and then. Without it a client that never opens a window would hold what
        waits for ever.
        """
        now = self._now()
        events: list[Event] = []
        for stream in list(self._sending.values()):
            if stream.blocked_since is not None and now - stream.blocked_since >= timeout:
                detail = f"no window for {timeout:g} s"
                self._violate(stream, ErrorCode.CANCEL, Refusal.HTTP2_STALLED, detail, events)
        return events

    @property
    def is_idle(self) -> bool:
        return not self._streams

    # Internals: receiving

    def _receive_frame(self, received: Frame, events: list[Event]) -> None:
        if not self._is_affordable(received):
            reason = _FLOOD_REASONS.get(received.kind, Refusal.HTTP2_EMPTY_FRAME_FLOOD)
            detail = f"more than {CONTROL_BURST} frames of no use"
            self._fail(ErrorCode.ENHANCE_YOUR_CALM, reason, detail, events)
        elif received.kind == FrameType.GOAWAY and not self._cutter.in_header_block:
            self._goaway_received(received, events)
        elif received.kind == FrameType.PRIORITY_UPDATE and not self._cutter.in_header_block:
            self._priority_update_received(received, events)
        else:
            self._pass_on(received, events)

    def _is_affordable(self, received: Frame) -> bool:
        match received.kind:
            case None | FrameType.HEADERS | FrameType.CONTINUATION | FrameType.WINDOW_UPDATE:
                return True
            case FrameType.DATA if (
                len(received.raw) > FRAME_HEADER_SIZE or received.flags & Flag.END_STREAM
            ):
                return True
        return self._control.spend(self._now())

    def _pass_on(self, received: Frame, events: list[Event]) -> None:
        try:
            translated = self._h2.receive_data(received.raw)
        except h2.exceptions.ProtocolError as error:
            # h2 has queued its GOAWAY.
            self._ended = True
            reason = _ERROR_REASONS.get(error.error_code, Refusal.HTTP2_PROTOCOL_ERROR)
            detail = f"{type(error).__name__}: {error}"
            events.append(PeerViolation(reason, detail))
            events.append(ConnectionEnded(detail))
            return
        for event in translated:
            match event:
                case h2.events.RequestReceived():
                    self._request_received(event, events)
                case h2.events.DataReceived():
                    self._body_received(event, events)
                case h2.events.TrailersReceived():
                    self._trailers_received(event, events)
                case h2.events.StreamReset():
                    self._stream_reset(event, events)

    def _request_received(self, event: h2.events.RequestReceived, events: list[Event]) -> None:
        self._highest_id = event.stream_id
        early = self._early_priorities.pop(event.stream_id, None)
        parts = parse_request_untrusted(event.headers)
        stream = _Stream(event.stream_id, head_only=False, priority=DEFAULT)
        stream.remote_ended = event.stream_ended is not None
        if event.stream_id > self._last_id:
            # "Endpoints MUST NOT [...] process" what is above our GOAWAY; the client may send it
            # elsewhere.
            self._reset(stream, ErrorCode.REFUSED_STREAM)
            return
        if len(self._streams) >= self._config.max_concurrent_streams:
            # RFC 9113 §5.1.2: "PROTOCOL_ERROR or REFUSED_STREAM", the second lets it be tried
            # again.
            detail = f"more than {self._config.max_concurrent_streams} streams"
            self._violate(
                stream, ErrorCode.REFUSED_STREAM, Refusal.HTTP2_STREAM_LIMIT, detail, events
            )
            return
        if isinstance(parts, Malformed):
            detail = parts.detail
            self._violate(
                stream, ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_BAD_HEADERS, detail, events
            )
            return
        self._streams[stream.id] = stream
        stream.head_only = parts.method == "HEAD"
        stream.priority = early or _priority_of(parts.headers)
        if _list_size(event.headers) > self._config.max_header_list_size:
            self._answer(
                stream, 431, Refusal.HTTP2_HEADERS_TOO_LARGE, "field section too large", events
            )
        elif parts.method == "CONNECT" and parts.protocol != "websocket":
            # RFC 9110 §9.3.6, RFC 8441 §4: no tunnels but WebSockets.
            detail = f"CONNECT for {parts.protocol or 'a host'}"
            self._answer(stream, 501, Refusal.HTTP2_BAD_HEADERS, detail, events)
        else:
            events.append(
                RequestReceived(
                    stream.id,
                    parts.method,
                    parts.target,
                    parts.headers,
                    "2",
                    ended=stream.remote_ended,
                    protocol=parts.protocol,
                    expects_continue=parts.expects_continue,
                )
            )

    def _body_received(self, event: h2.events.DataReceived, events: list[Event]) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return
        stream.remote_ended = event.stream_ended is not None
        stream.unacknowledged += event.flow_controlled_length
        if stream.released or (stream.local_ended and not stream.tunnel):
            # Answered already, nobody will read it; `_reset_unfinished_uploads` stops it if more
            # comes.
            self._acknowledge(stream, stream.unacknowledged)
            self._forget_if_done(stream)
            return
        padding = event.flow_controlled_length - len(event.data)
        if padding:
            self._acknowledge(stream, padding)
        if event.data:
            events.append(
                BodyReceived(stream.id, event.data, len(event.data), ended=stream.remote_ended)
            )
        elif stream.remote_ended:
            events.append(BodyEnded(stream.id))

    def _trailers_received(self, event: h2.events.TrailersReceived, events: list[Event]) -> None:
        if (stream := self._streams.get(event.stream_id)) is None:
            return
        trailers = parse_trailers_untrusted(event.headers)
        stream.remote_ended = True
        if isinstance(trailers, Malformed):
            detail = trailers.detail
            self._violate(
                stream, ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_BAD_HEADERS, detail, events
            )
            return
        events.append(BodyEnded(stream.id, trailers))
        self._forget_if_done(stream)

    def _stream_reset(self, event: h2.events.StreamReset, events: list[Event]) -> None:
        if (stream := self._streams.get(event.stream_id)) is None:
            return
        self._close(stream)
        events.append(StreamReset(stream.id))
        if not event.remote_reset:
            detail = f"stream error {event.error_code}"
            events.insert(-1, PeerViolation(Refusal.HTTP2_FLOW_CONTROL, detail, stream.id))
        self._spend_reset(events)

    def _goaway_received(self, received: Frame, events: list[Event]) -> None:
        if received.stream_id != 0:
            self._fail(
                ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_PROTOCOL_ERROR, "GOAWAY on a stream", events
            )
        elif len(received.payload) < 8:
            self._fail(
                ErrorCode.FRAME_SIZE_ERROR, Refusal.HTTP2_FRAME_SIZE, "GOAWAY too short", events
            )
        else:
            # The peer opens no more streams, but still wants the answers to those it has.
            self._peer_going = True
            events.extend(self._end_if_empty())

    def _priority_update_received(self, received: Frame, events: list[Event]) -> None:
        """RFC 9218 §7.1."""
        if received.stream_id != 0:
            detail = "PRIORITY_UPDATE on a stream"
            self._fail(ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_PROTOCOL_ERROR, detail, events)
            return
        if len(received.payload) < 4:
            detail = "PRIORITY_UPDATE too short"
            self._fail(ErrorCode.FRAME_SIZE_ERROR, Refusal.HTTP2_FRAME_SIZE, detail, events)
            return
        stream_id = int.from_bytes(received.payload[:4]) & MAX_STREAM_ID
        if stream_id % 2 == 0:
            detail = f"PRIORITY_UPDATE for stream {stream_id}"
            self._fail(ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_PROTOCOL_ERROR, detail, events)
            return
        priority = parse_priority_untrusted(received.payload[4:])
        if stream := self._streams.get(stream_id):
            stream.priority = priority
        elif stream_id > self._highest_id and len(self._early_priorities) < MAX_EARLY_PRIORITIES:
            self._early_priorities[stream_id] = priority

    # Internals: ending streams and the connection

    def _violate(
        self, stream: _Stream, code: ErrorCode, reason: Refusal, detail: str, events: list[Event]
    ) -> None:
        """A stream error: the stream goes, the connection stays."""
        self._reset(stream, code)
        events.append(PeerViolation(reason, detail, stream.id))
        # Errors that we answer with RST_STREAM count as well: CVE-2025-8671 (MadeYouReset).
        self._spend_reset(events)

    def _answer(
        self, stream: _Stream, status: int, reason: Refusal, detail: str, events: list[Event]
    ) -> None:
        """Answer in the application's place."""
        stream.released = True
        fields = [_STATUS[status], (b"content-length", b"0")]
        self._h2.send_headers(stream.id, fields, end_stream=True)
        self._local_end(stream)
        events.append(PeerViolation(reason, detail, stream.id))

    def _spend_reset(self, events: list[Event]) -> None:
        if not self._resets.spend(self._now()):
            detail = f"more than {self._config.max_resets} streams reset in {RESET_PERIOD:g} s"
            self._fail(ErrorCode.ENHANCE_YOUR_CALM, Refusal.HTTP2_RESET_FLOOD, detail, events)

    def _fail(self, code: ErrorCode, reason: Refusal, detail: str, events: list[Event]) -> None:
        """A connection error (RFC 9113 §5.4.1)."""
        if not self._ended:
            self._write_goaway(self._highest_id, code)
            self._ended = True
            events.append(PeerViolation(reason, detail))
            events.append(ConnectionEnded(detail))

    def _reset(self, stream: _Stream, code: ErrorCode) -> None:
        self._h2.reset_stream(stream.id, code)
        self._close(stream)

    def _close(self, stream: _Stream) -> None:
        """Both sides are over, in whatever way."""
        stream.local_ended = stream.remote_ended = True
        stream.queue.clear()
        stream.queued = 0
        self._sending.pop(stream.id, None)
        self._acknowledge(stream, stream.unacknowledged)
        self._forget_if_done(stream)

    def _local_end(self, stream: _Stream) -> None:
        stream.local_ended = True
        if not stream.remote_ended and not stream.tunnel:
            self._unfinished_uploads.append(stream)
        self._forget_if_done(stream)

    def _reset_unfinished_uploads(self) -> None:
        # "A server MAY request that the client abort transmission of a request without error by
        # sending a RST_STREAM with an error code of NO_ERROR after sending a complete response"
        # (RFC 9113 §8.1). Not before the frames that came together with the head have been seen: a
        # small body is then complete.
        for stream in self._unfinished_uploads:
            if not stream.remote_ended:
                self._reset(stream, ErrorCode.NO_ERROR)
        self._unfinished_uploads.clear()

    def _forget_if_done(self, stream: _Stream) -> None:
        if stream.released and stream.local_ended and stream.remote_ended:
            self._streams.pop(stream.id, None)

    def _end_if_empty(self) -> list[Event]:
        going = self._peer_going or self._last_id != MAX_STREAM_ID
        if not going or self._streams or self._ended:
            return []
        if self._last_id == MAX_STREAM_ID:
            self._write_goaway(self._highest_id, ErrorCode.NO_ERROR)
        self._ended = True
        return [ConnectionEnded("drained")]

    def _acknowledge(self, stream: _Stream, credit: int) -> None:
        if credit:
            stream.unacknowledged -= credit
            self._h2.acknowledge_received_data(credit, stream.id)

    # Internals: sending

    def _writable(self, stream_id: int) -> _Stream | None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.ending or stream.local_ended or self._ended:
            return None
        return stream

    def _enqueue(self, stream: _Stream, data: bytes, *, ended: bool) -> list[Event]:
        stream.ending = ended
        if data:
            stream.queue.append(data)
            stream.queued += len(data)
        if stream.queue or ended:
            self._sending[stream.id] = stream
        if stream.queued <= self._flow.high_water or stream.paused:
            return []
        stream.paused = True
        return [StreamPaused(stream.id)]

    def _write_bodies(self) -> None:
        budget = WRITE_BUDGET
        while budget > 0 and (stream := self._next_to_send()):
            budget -= self._write_frame(stream)

    def _next_to_send(self) -> _Stream | None:
        """The most urgent stream that may send; those of equal rank one after the other, or in
        turns where parts of them are of use (RFC 9218 §10).
        """
        best: _Stream | None = None
        for stream in self._sending.values():
            if stream.queued and self._h2.local_flow_control_window(stream.id) <= 0:
                if stream.blocked_since is None:
                    stream.blocked_since = self._now()
            elif best is None or _rank(stream) < _rank(best):
                best = stream
        return best

    def _write_frame(self, stream: _Stream) -> int:
        part: bytes | memoryview = b""
        if stream.queued:
            part = stream.queue.popleft()
            window = self._h2.local_flow_control_window(stream.id)
            if len(part) > (room := min(window, self._h2.max_outbound_frame_size)):
                view = memoryview(part)
                stream.queue.appendleft(view[room:])
                part = view[:room]
            stream.queued -= len(part)
        stream.blocked_since = None
        ended = stream.ending and not stream.queued
        if part or stream.trailers is None:
            self._h2.send_data(stream.id, part, end_stream=ended and stream.trailers is None)
        if not stream.queued:
            del self._sending[stream.id]
        if ended:
            if stream.trailers is not None:
                self._h2.send_headers(stream.id, stream.trailers, end_stream=True)
            self._local_end(stream)
            self._sent_events.extend(self._end_if_empty())
        elif stream.paused and stream.queued <= self._flow.low_water:
            stream.paused = False
            self._sent_events.append(StreamResumed(stream.id))
        if stream.priority.incremental:
            self._turn += 1
            stream.turn = self._turn
        return len(part)

    def _write_goaway(self, last_id: int, code: ErrorCode) -> None:
        payload = last_id.to_bytes(4) + code.to_bytes(4)
        self._out.append(self._h2.data_to_send())
        self._out.append(frame(FrameType.GOAWAY, 0, payload))

    # Internals: starting

    def _new_connection(self) -> h2.connection.H2Connection:
        configuration = h2.config.H2Configuration(
            client_side=False,
            header_encoding=None,
            # `headers` checks both directions, by stream where h2 would end the connection.
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        connection = h2.connection.H2Connection(configuration)
        connection.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                # h2 ends the connection at its limit. Ours is announced by `_announce_settings` and
                # kept stream by stream in `_request_received`.
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAM_ID,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: self._config.stream_window,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: self._config.max_header_list_size,
                h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
            },
        )
        # Above our limit a request is answered with 431, which needs the HPACK state to stay in
        # step; above twice as much the connection ends.
        connection.decoder.max_header_list_size = 2 * self._config.max_header_list_size
        return connection

    def _announce_settings(self) -> None:
        settings = {
            **self._h2.local_settings,
            h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self._config.max_concurrent_streams,
            NO_RFC7540_PRIORITIES: 1,
        }
        # "The server connection preface consists of a potentially empty SETTINGS frame [...] that
        # MUST be the first frame the server sends" (RFC 9113 §3.4). h2 has queued one with its own
        # stream limit.
        self._h2.clear_outbound_data_buffer()
        payload = b"".join(
            int(code).to_bytes(2) + value.to_bytes(4) for code, value in settings.items()
        )
        self._out.append(frame(FrameType.SETTINGS, 0, payload))
        self._h2.increment_flow_control_window(self._config.connection_window - DEFAULT_WINDOW)


def _protect(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Keep what identifies a user out of the compression context (RFC 7541 §7.1.3)."""
    return NeverIndexedHeaderTuple(*field) if field[0] in _SECRET else field


def _rank(stream: _Stream) -> tuple[int, int, int]:
    return stream.priority.urgency, stream.turn, stream.id


def _priority_of(headers: Headers) -> Priority:
    for name, value in headers:
        if name == b"priority":
            return parse_priority_untrusted(value)
    return DEFAULT


def _list_size(fields: list[tuple[bytes, bytes]]) -> int:
    """RFC 9113 §6.5.2: "plus an overhead of 32 octets for each field"."""
    return sum(len(name) + len(value) + 32 for name, value in fields)

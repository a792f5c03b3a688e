"""HTTP/2, server side of one connection. Sans-IO: bytes in, events out, calls in, bytes out.

h2 owns framing, HPACK, stream states and windows (RFC 9113, RFC 7541). This module owns what a
server adds: the translation to the events shared by all versions, streams refused one by one (h2
would end the connection), bodies that leave as windows allow, GOAWAY in two phases (h2 ends its
connection with the first), and the upgrade from HTTP/1.1.

    http2_frames     bytes into frames, before h2 sees them    http2_sending   what leaves
    http2_requests   what the application may see              http2_streams   in which order
    http2_rules      frames that h2 reads otherwise        http2_fields    blocks kept from h2
    http2_guard      floods                                http2_hpack     fields seen before

Opening windows follows the application: bytes are acknowledged when it has taken them.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h2.stream
import hyperframe.exceptions

from asgiri.config import FlowConfig, Http2Config
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import (
    BodyEnded,
    BodyReceived,
    ConnectionEnded,
    Event,
    PeerViolation,
    RequestReceived,
    StreamReset,
)
from asgiri.worker.protocol.headers import (
    CONNECTION_SPECIFIC,
    Malformed,
    parse_trailers_untrusted,
)
from asgiri.worker.protocol.http2_fields import FieldDecoder
from asgiri.worker.protocol.http2_frames import (
    MAX_STREAM_ID,
    ErrorCode,
    Flag,
    Frame,
    FrameCutter,
    FrameType,
    FrameViolation,
    check_goaway,
    frame,
    parse_priority_update,
)
from asgiri.worker.protocol.http2_guard import FloodGuard
from asgiri.worker.protocol.http2_hpack import KnowingEncoder
from asgiri.worker.protocol.http2_requests import Refused, RequestReader, priority_of
from asgiri.worker.protocol.http2_rules import (
    StreamViolation,
    check_first,
    check_priority,
    read_settings,
    read_window_update,
    with_end,
    without_priority,
)
from asgiri.worker.protocol.http2_sending import DRAIN_PING, Http2Sender
from asgiri.worker.protocol.http2_streams import Stream
from asgiri.worker.protocol.priority import Priority, parse_priority_untrusted

MAX_EARLY_PRIORITIES: Final = 128
"""Priorities kept for streams that have not begun (RFC 9218 §7.1 lets us forget them)."""
NO_RFC7540_PRIORITIES: Final = 0x9
DEFAULT_WINDOW: Final = 65535

MAX_FORGETTABLE: Final = 32
"""Streams that are over and that h2 still has, besides as many as are open."""

_PLAIN_HEADERS: Final = (Flag.END_HEADERS, Flag.END_HEADERS | Flag.END_STREAM)
_BASE64URL: Final = re.compile(rb"[0-9A-Za-z_-]*={0,2}")
_H2C_FIELDS: Final = CONNECTION_SPECIFIC | {b"http2-settings"}

_ERROR_REASONS: Final[dict[int, Refusal]] = {
    ErrorCode.FLOW_CONTROL_ERROR: Refusal.HTTP2_FLOW_CONTROL,
    ErrorCode.FRAME_SIZE_ERROR: Refusal.HTTP2_FRAME_SIZE,
    ErrorCode.STREAM_CLOSED: Refusal.HTTP2_STREAM_CLOSED,
}


class Http2Connection(Http2Sender):
    """An `events.HttpEngine` over h2. `now` gives monotonic seconds, for the limits by time."""

    http_version = "2"

    def __init__(
        self,
        config: Http2Config,
        flow: FlowConfig,
        *,
        now: Callable[[], float],
        h2c_settings: bytes | None = None,
    ) -> None:
        """`h2c_settings`: HTTP2-Settings of a request to be upgraded; ValueError if it is wrong."""
        self._decoder = FieldDecoder(max_list_size=config.max_header_list_size)
        super().__init__(_new_connection(config, self._decoder), flow, now=now)
        self._config = config
        self._cutter = FrameCutter(max_header_block=config.max_header_list_size)
        self._requests = RequestReader(max_list_size=config.max_header_list_size)
        self._guard = FloodGuard(max_resets=config.max_resets, now=now)
        self._early_priorities: dict[int, Priority] = {}
        self._settled = False
        """The peer's first SETTINGS have come."""
        self._trailers_go_on = False
        """The last HEADERS came without END_STREAM, which trailers must have."""
        if h2c_settings is None:
            self._h2.initiate_connection()
        else:
            self._initiate_upgraded(h2c_settings)
        self._announce_settings()

    # Receiving

    def receive_data(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if self._ended:
            return events
        try:
            for received in self._cutter.receive_untrusted(data):
                self._receive_frame(received, events)
                if events and type(events[-1]) is ConnectionEnded:
                    break
        except FrameViolation as violation:
            self._fail(violation, events)
        return events

    def receive_eof(self) -> list[Event]:
        if self._ended:
            return []
        self._ended = True
        return [ConnectionEnded("closed by the peer")]

    def begin_upgraded(self, request: RequestReceived) -> RequestReceived:
        """Go on with a request of HTTP/1.1 as stream 1 (RFC 7540 §3.2). Its body, complete by now,
        is the caller's to deliver.
        """
        stream = self._streams[1] = Stream(1, remote_ended=True)
        stream.head_only = request.method == "HEAD"
        headers = [field for field in request.headers if field[0] not in _H2C_FIELDS]
        stream.priority = priority_of(headers)
        self._highest_id = 1
        return RequestReceived(1, request.method, request.target, headers, "2", request.ended)

    def refuse(self) -> list[Event]:
        """Tell the peer that it must use HTTP/1.1: the configuration does not allow HTTP/2."""
        events: list[Event] = []
        code, detail = ErrorCode.HTTP_1_1_REQUIRED, "HTTP/2 is switched off"
        self._fail(FrameViolation(code, Refusal.VERSION_DISABLED, detail), events)
        return events

    # Internals: receiving

    def _receive_frame(self, received: Frame, events: list[Event]) -> None:
        self._guard.receive(received)
        if received.kind is None or self._cutter.in_header_block:
            # h2 compares the preface, and refuses all but CONTINUATION.
            self._pass_on(received, events)
            return
        if not self._settled:
            check_first(received)
            self._settled = True
        stream = self._streams.get(received.stream_id)
        match received.kind:
            case FrameType.HEADERS | FrameType.DATA:
                self._receive_content(received, stream, events)
            case FrameType.SETTINGS:
                self._pass_on(read_settings(received), events)
            case FrameType.GOAWAY:
                check_goaway(received)
                # The peer opens no more streams, but still wants the answers to those it has.
                self._peer_going = True
                events.extend(self._end_if_empty())
            case FrameType.PRIORITY_UPDATE:
                self._priority_update_received(*parse_priority_update(received))
            case FrameType.WINDOW_UPDATE | FrameType.PRIORITY:
                self._receive_advice(received, stream, events)
            case _:
                self._pass_on(received, events)

    def _receive_content(self, received: Frame, stream: Stream | None, events: list[Event]) -> None:
        if stream.remote_ended if stream else received.stream_id <= self._highest_id:
            self._guard.receive_late()
        if received.kind == FrameType.HEADERS:
            if stream is None and self._opens_stream(received, events):
                return
            self._trailers_go_on = not received.flags & Flag.END_STREAM
            if self._trailers_go_on and stream and not stream.remote_ended:
                # h2 would end the connection; `_trailers_received` ends the stream.
                received = with_end(received)
            if received.flags & Flag.PRIORITY:
                received = without_priority(received)
        self._pass_on(received, events)

    def _opens_stream(self, received: Frame, events: list[Event]) -> bool:
        """Receive a request whose fields came before, 12 us faster than h2, which makes objects of
        frames and describes them to a log that is off. False: what h2 has to see.
        """
        stream_id = received.stream_id
        if (
            received.flags not in _PLAIN_HEADERS
            or stream_id <= self._h2.highest_inbound_stream_id
            or not stream_id & 1
            or not self._decoder.recall(received.payload)
        ):
            return False
        if len(self._h2.streams) > 2 * len(self._streams) + MAX_FORGETTABLE:
            # h2 forgets closed streams when it is asked how many are open.
            _ = self._h2.open_inbound_streams
        stream = h2.stream.H2Stream(
            stream_id,
            config=self._h2.config,
            inbound_window_size=self._h2.local_settings.initial_window_size,
            outbound_window_size=self._h2.remote_settings.initial_window_size,
        )
        stream.max_outbound_frame_size = self._h2.max_outbound_frame_size
        self._h2.streams[stream_id] = stream
        self._h2.highest_inbound_stream_id = stream_id
        _, [event, *_] = stream.receive_headers([], bool(received.flags & Flag.END_STREAM), None)
        assert isinstance(event, h2.events.RequestReceived)
        self._request_received(event, events)
        return True

    def _receive_advice(self, received: Frame, stream: Stream | None, events: list[Event]) -> None:
        """A stream error of these does not depend on what h2 thinks of the stream."""
        is_open = stream is not None and not (stream.local_ended and stream.remote_ended)
        try:
            if received.kind == FrameType.PRIORITY:
                check_priority(received, stream_is_open=is_open)
            else:
                self._pass_on(read_window_update(received, stream_is_open=is_open), events)
        except StreamViolation as violation:
            assert stream is not None
            self._violate(stream, violation.code, violation.reason, violation.detail, events)

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
                case h2.events.TrailersReceived(stream_id=stream_id):
                    self._trailers_received(self._streams[stream_id], events)
                case h2.events.StreamReset():
                    self._stream_reset(event, events)
                case h2.events.WindowUpdated(stream_id=stream_id):
                    self._sending.window_opened(stream_id)
                case h2.events.RemoteSettingsChanged():
                    self._sending.window_opened(0)
                case h2.events.PingAckReceived(ping_data=payload):
                    if self._draining and payload == DRAIN_PING:
                        events.extend(self.finish_drain())

    def _request_received(self, event: h2.events.RequestReceived, events: list[Event]) -> None:
        self._highest_id = event.stream_id
        early = self._early_priorities.pop(event.stream_id, None)
        stream = Stream(event.stream_id, remote_ended=event.stream_ended is not None)
        if event.stream_id > self._last_id:
            # "Endpoints MUST NOT [...] process" what is above our GOAWAY; the client may send it
            # elsewhere.
            self._reset(stream, ErrorCode.REFUSED_STREAM)
            return
        if len(self._streams) >= self._config.max_concurrent_streams:
            # RFC 9113 §5.1.2: "PROTOCOL_ERROR or REFUSED_STREAM", the second lets it be tried
            # again.
            detail = f"more than {self._config.max_concurrent_streams} streams"
            code, reason = ErrorCode.REFUSED_STREAM, Refusal.HTTP2_STREAM_LIMIT
            self._violate(stream, code, reason, detail, events)
            return
        request = self._requests.read_untrusted(self._decoder.fields, ended=stream.remote_ended)
        if isinstance(request, Refused):
            self._refuse_request(stream, request, events)
            return
        self._streams[stream.id] = stream
        stream.head_only = request.method == "HEAD"
        stream.expected = request.content_length
        stream.priority = early or priority_of(request.headers)
        events.append(
            RequestReceived(
                stream.id,
                request.method,
                request.target,
                request.headers.copy(),
                "2",
                ended=stream.remote_ended,
                protocol=request.protocol,
                expects_continue=request.expects_continue,
            )
        )

    def _refuse_request(self, stream: Stream, refused: Refused, events: list[Event]) -> None:
        if refused.status is None:
            code = ErrorCode.PROTOCOL_ERROR
            self._violate(stream, code, refused.reason, refused.detail, events)
            return
        self._streams[stream.id] = stream
        stream.released = True
        self._answer(stream, refused.status)
        events.append(PeerViolation(refused.reason, refused.detail, stream.id))

    def _body_received(self, event: h2.events.DataReceived, events: list[Event]) -> None:
        # A stream that we have forgotten is closed for h2 too: it gives no events.
        stream = self._streams[event.stream_id]
        stream.remote_ended = event.stream_ended is not None
        stream.unacknowledged += event.flow_controlled_length
        if stream.released or (stream.local_ended and not stream.tunnel):
            # Answered already, nobody will read it; `_reset_unfinished_uploads` stops it if more
            # comes.
            self._acknowledge(stream, stream.unacknowledged)
            self._forget_if_done(stream)
            events.extend(self._end_if_empty())
            return
        if not stream.count_body(len(event.data)):
            self._violate_length(stream, events)
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

    def _trailers_received(self, stream: Stream, events: list[Event]) -> None:
        trailers = parse_trailers_untrusted(self._decoder.fields)
        stream.remote_ended = True
        if self._trailers_go_on:
            # RFC 9113 §8.1: "MUST treat the corresponding request or response as malformed".
            trailers = Malformed("trailers without END_STREAM")
        if isinstance(trailers, Malformed):
            code, reason = ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_BAD_HEADERS
            self._violate(stream, code, reason, trailers.detail, events)
            return
        if not stream.count_body(0):
            self._violate_length(stream, events)
            return
        events.append(BodyEnded(stream.id, trailers))
        self._forget_if_done(stream)
        events.extend(self._end_if_empty())

    def _stream_reset(self, event: h2.events.StreamReset, events: list[Event]) -> None:
        stream = self._streams[event.stream_id]
        self._close(stream)
        if not event.remote_reset:
            detail = f"stream error {event.error_code}"
            events.append(PeerViolation(Refusal.HTTP2_FLOW_CONTROL, detail, stream.id))
        events.append(StreamReset(stream.id))
        events.extend(self._end_if_empty())
        self._guard.reset()

    def _priority_update_received(self, stream_id: int, value: bytes) -> None:
        """RFC 9218 §7.1."""
        priority = parse_priority_untrusted(value)
        if stream := self._streams.get(stream_id):
            self._sending.prioritize(stream, priority)
        elif stream_id > self._highest_id and len(self._early_priorities) < MAX_EARLY_PRIORITIES:
            self._early_priorities[stream_id] = priority

    # Internals: violations

    def _violate(
        self, stream: Stream, code: ErrorCode, reason: Refusal, detail: str, events: list[Event]
    ) -> None:
        """A stream error: the stream goes, the connection stays."""
        self._give_up(stream, code, reason, detail, events)
        self._guard.reset()

    def _violate_length(self, stream: Stream, events: list[Event]) -> None:
        # RFC 9113 §8.1.1: malformed, "even though no content is included in DATA frames" may be.
        detail = "the body is not as long as its content-length"
        code, reason = ErrorCode.PROTOCOL_ERROR, Refusal.BODY_LENGTH_MISMATCH
        self._violate(stream, code, reason, detail, events)

    def _fail(self, violation: FrameViolation, events: list[Event]) -> None:
        """A connection error (RFC 9113 §5.4.1)."""
        self._write_goaway(self._highest_id, violation.code)
        self._ended = True
        events.append(PeerViolation(violation.reason, violation.detail))
        events.append(ConnectionEnded(violation.detail))

    # Internals: starting

    def _initiate_upgraded(self, h2c_settings: bytes) -> None:
        # RFC 7540 §3.2.1: base64url without its padding. h2 wants that, and takes any alphabet.
        if not _BASE64URL.fullmatch(h2c_settings):
            raise ValueError(f"HTTP2-Settings {h2c_settings!r}: not in base64url")
        try:
            self._h2.initiate_upgrade_connection(h2c_settings + b"=" * (-len(h2c_settings) % 4))
        except (
            binascii.Error,
            h2.exceptions.ProtocolError,
            hyperframe.exceptions.HyperframeError,
        ) as error:
            raise ValueError(f"HTTP2-Settings {h2c_settings!r}: {error}") from None

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


def _new_connection(config: Http2Config, decoder: FieldDecoder) -> h2.connection.H2Connection:
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
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: config.stream_window,
            h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: config.max_header_list_size,
            h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
        },
    )
    connection.decoder = decoder
    connection.encoder = KnowingEncoder()
    return connection

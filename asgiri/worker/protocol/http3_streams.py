"""Request streams of an HTTP/3 connection, both sides of each (RFC 9114 §4). Sans-IO.

A request's record lives until both sides have ended: the peer's by FIN, RESET_STREAM, or after our
STOP_SENDING; ours when FIN is queued or the stream was reset. What the application has not read is
granted back then, so that a body nobody reads stops neither the connection nor another request.
"""

from __future__ import annotations

from typing import Final

from asgiri.config import FlowConfig, Http3Config
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.budget import Budget
from asgiri.worker.protocol.events import (
    BodyEnded,
    BodyReceived,
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
from asgiri.worker.protocol.http3_frames import (
    DATA,
    HEADERS,
    ErrorCode,
    FrameViolation,
    frame,
    write_integer,
)
from asgiri.worker.protocol.http3_requests import Phase, Request
from asgiri.worker.protocol.priority import Priority, parse_priority_untrusted
from asgiri.worker.protocol.qpack import FieldSections, SectionTooLargeError
from asgiri.worker.protocol.quic import SteeredQuicConnection

RESET_BURST: Final = 256
RESET_RATE: Final = 64.0
"""Requests a client may give up before they are answered: a browser that leaves a page gives up 100
at once; 64 a second for ever cost us 2 % of a worker. Each starts the application
(CVE-2023-44487)."""
JOIN_LIMIT: Final = 4096
"""Up to this size frame header and body are joined and queued at once: a copy is cheaper than a
call."""
SERVED_PROTOCOLS: Final = frozenset(("websocket",))
"""What :protocol may ask for (RFC 9220). For others 501 (RFC 9220 §3)."""
FIRST_UNREACHABLE: Final = 1 << 62
"""No stream has this ID or one above it."""


class RequestStreams:
    """The half of `http3.Http3Connection` that knows requests; the other half is the connection."""

    def __init__(
        self, quic: SteeredQuicConnection, *, config: Http3Config, flow: FlowConfig
    ) -> None:
        self._quic = quic
        self._sections = FieldSections(config.max_header_list_size)
        self._largest_section = config.max_header_list_size
        self._max_streams = config.max_streams
        self._high_water = flow.high_water
        self._low_water = flow.low_water
        self._now = 0.0
        self._events: list[Event] = []
        """Collected by the call that is under way, or by `datagrams_to_send`."""
        self.output_is_due = False
        """Something was queued since `datagrams_to_send` was last called."""
        self._requests: dict[int, Request] = {}
        self._running: set[int] = set()
        """Requests given out whose application call has not returned."""
        self._paused: set[Request] = set()
        self._answered_early: list[Request] = []
        self._resets = Budget(burst=RESET_BURST, per_second=RESET_RATE)
        self._early_priorities: dict[int, Priority] = {}
        """From a PRIORITY_UPDATE that came before its request."""
        self._next_stream = 0
        self._refuse_from = FIRST_UNREACHABLE

    # Called by the transport, on behalf of an exchange

    def acknowledge(self, stream_id: int, credit: int) -> list[Event]:
        request = self._requests.get(stream_id)
        if request is not None:
            credit = min(credit, request.unread)
            request.unread -= credit
            self._grant(stream_id, credit)
        return []

    def release(self, stream_id: int) -> list[Event]:
        self._running.discard(stream_id)
        return []

    def send_informational(self, stream_id: int, status: int, headers: Headers) -> list[Event]:
        if request := self._open(stream_id):
            self._send(request, self._section(stream_id, status, headers), ended=False)
        return self._take_events()

    def send_response(
        self, stream_id: int, head: ResponseHead, body: bytes, *, ended: bool
    ) -> list[Event]:
        if request := self._open(stream_id):
            if head.status == 204 or head.status == 304:
                request.bodiless = True
            if head.content_length is not None and not request.bodiless:
                request.length_left = take_from_length(head.content_length, len(body), ended=ended)
            data = self._section(stream_id, head.status, head.headers)
            if body and not request.bodiless:
                data = self._join(request, data, body)
            self._send(request, data, ended=ended)
        return self._take_events()

    def send_body(self, stream_id: int, data: bytes, *, ended: bool) -> list[Event]:
        if request := self._open(stream_id):
            if request.length_left is not None:
                request.length_left = take_from_length(request.length_left, len(data), ended=ended)
            data = self._join(request, b"", data) if data and not request.bodiless else b""
            if data or ended:
                self._send(request, data, ended=ended)
        return self._take_events()

    def send_trailers(self, stream_id: int, headers: Headers) -> list[Event]:
        if request := self._open(stream_id):
            if request.length_left is not None:
                take_from_length(request.length_left, 0, ended=True)
            section = frame(HEADERS, self._sections.encode(stream_id, headers))
            self._send(request, section, ended=True)
        return self._take_events()

    def accept_tunnel(self, stream_id: int, headers: Headers) -> list[Event]:
        if request := self._open(stream_id):
            self._send(request, self._section(stream_id, 200, headers), ended=False)
        return self._take_events()

    def reset_stream(self, stream_id: int) -> list[Event]:
        if request := self._open(stream_id):
            self._abort(request, ErrorCode.H3_INTERNAL_ERROR)
        return []

    # Waiting

    def time_out(self, stream_id: int) -> list[Event]:
        """The request's body does not come: answer 408, or break off what has begun."""
        if request := self._open(stream_id):
            detail = "timeout waiting for the body"
            self._events.append(PeerViolation(Refusal.BODY_TIMEOUT, detail, stream_id))
            if request.begun:
                self._abort(request, ErrorCode.H3_REQUEST_CANCELLED)
            else:
                self._answer(request, 408)
        return self._take_events()

    def drop_stalled(
        self, now: float, *, head_patience: float, send_patience: float
    ) -> list[Event]:
        """Give up requests that do not come, and responses that the peer does not let through.

        To be called now and then: a client that keeps its connection alive and nothing else could
        otherwise hold what waits for it for ever.
        """
        for request in list(self._requests.values()):
            waits = request.phase is Phase.HEAD and not request.discarding
            if waits and now - request.since >= head_patience:
                self._refuse(
                    request,
                    ErrorCode.H3_REQUEST_INCOMPLETE,
                    Refusal.HTTP3_STALLED,
                    f"no request within {head_patience:g} s",
                )
        for stream_id in self._quic.stalled_streams(now, send_patience):
            detail = f"no window for {send_patience:g} s"
            self._events.append(PeerViolation(Refusal.HTTP3_STALLED, detail, stream_id))
            self._quic.abort_sending(stream_id, ErrorCode.H3_REQUEST_CANCELLED)
            self.output_is_due = True
            if (stalled := self._requests.get(stream_id)) is not None:
                self._abort(stalled, ErrorCode.H3_REQUEST_CANCELLED)
        return self._take_events()

    @property
    def has_requests(self) -> bool:
        """A request is open, complete or not."""
        return bool(self._requests)

    @property
    def is_waiting(self) -> bool:
        """A request is open, or a response has not arrived: `drop_stalled` may find something."""
        return bool(self._requests) or self._quic.has_unfinished_responses

    # The peer's side

    def _request_data(self, stream_id: int, data: bytes, fin: bool) -> None:
        request = self._requests.get(stream_id) or self._begin_request(stream_id)
        if fin:
            request.fin = True
        if request.discarding:
            self._let_go(request)
            if fin:
                self._forget(request)
            return
        frames = request.frames
        if frames.in_data and len(data) < frames.left and not request.blocked:
            # The middle of a large body: most packets of an upload.
            frames.left -= len(data)
            self._body(request, data)
            return
        pieces = frames.read(data)
        # Framing and field sections are granted as they come: the limit on a section bounds them.
        body_size = sum(len(payload) for kind, payload in pieces if kind == DATA)
        self._grant(stream_id, len(data) - body_size)
        request.pieces += pieces
        self._work_off(request)

    def _begin_request(self, stream_id: int) -> Request:
        request = self._requests[stream_id] = Request(stream_id, self._largest_section, self._now)
        self._next_stream = max(self._next_stream, stream_id + 4)
        if stream_id >= self._refuse_from:
            self._abort(request, ErrorCode.H3_REQUEST_REJECTED)
        elif self._quic.sending_is_over(stream_id):  # STOP_SENDING came with the request
            self._given_up(request)
        return request

    def _work_off(self, request: Request) -> None:
        """Handle the pieces that have come, until a field section has to wait."""
        pieces = request.pieces
        while pieces and not request.blocked:
            kind, payload = pieces.pop(0)
            if kind == DATA:
                self._body(request, payload)
            elif kind == HEADERS:
                self._field_section(request, payload)
            else:
                self._section_too_large(request)
        if request.fin and not request.ended and not request.blocked and not request.discarding:
            self._request_ended(request)

    def _body(self, request: Request, data: bytes) -> None:
        if request.phase is Phase.HEAD or request.phase is Phase.NOTHING:
            raise FrameViolation(ErrorCode.H3_FRAME_UNEXPECTED, f"DATA as {request.phase.name}")
        if not data:
            return
        size = len(data)
        request.received += size
        if request.content_length is not None and request.received > request.content_length:
            self._refuse(
                request,
                ErrorCode.H3_MESSAGE_ERROR,
                Refusal.BODY_LENGTH_MISMATCH,
                f"body exceeds its content-length {request.content_length}",
            )
            return
        request.unread += size
        self._events.append(BodyReceived(request.stream_id, data, size))

    def _field_section(self, request: Request, block: bytes) -> None:
        if request.phase is Phase.TUNNEL or request.phase is Phase.NOTHING:
            raise FrameViolation(ErrorCode.H3_FRAME_UNEXPECTED, f"HEADERS as {request.phase.name}")
        try:
            fields = self._sections.decode(request.stream_id, block)
        except SectionTooLargeError:
            self._section_too_large(request)
            return
        if fields is None:
            request.blocked = True
        else:
            self._fields(request, fields)

    def _resume(self, stream_id: int) -> None:
        request = self._requests[stream_id]
        try:
            fields = self._sections.resume(stream_id)
        except SectionTooLargeError:
            request.blocked = False
            self._section_too_large(request)
            return
        if fields is not None:
            request.blocked = False
            self._fields(request, fields)
            self._work_off(request)

    def _fields(self, request: Request, fields: Headers) -> None:
        if request.phase is Phase.HEAD:
            self._begin_exchange(request, fields)
            return
        trailers = parse_trailers_untrusted(fields)
        if isinstance(trailers, Malformed):
            self._malformed(request, trailers)
        else:
            request.trailers = trailers
            request.phase = Phase.NOTHING

    def _begin_exchange(self, request: Request, fields: Headers) -> None:
        parts = parse_request_untrusted(fields)
        if isinstance(parts, Malformed):
            self._malformed(request, parts)
            return
        stream_id = request.stream_id
        if len(self._running) >= self._max_streams:
            self._refuse(
                request,
                ErrorCode.H3_REQUEST_REJECTED,
                Refusal.HTTP3_STREAM_LIMIT,
                f"{len(self._running)} calls of the application are running",
            )
            return
        if parts.protocol is not None and parts.protocol not in SERVED_PROTOCOLS:
            request.phase = Phase.TUNNEL
            self._answer(request, 501)
            return
        if parts.method == "CONNECT":
            request.phase = Phase.TUNNEL
        else:
            request.phase = Phase.BODY
            request.content_length = parts.content_length
            request.bodiless = parts.method == "HEAD"
        self._running.add(stream_id)
        priority = self._early_priorities.pop(stream_id, None)
        for name, value in parts.headers:
            if priority is None and name == b"priority":
                priority = parse_priority_untrusted(value)
        if priority is not None:
            self._quic.prioritize(stream_id, priority.urgency, incremental=priority.incremental)
        self._events.append(
            RequestReceived(
                stream_id,
                parts.method,
                parts.target,
                parts.headers,
                "3",
                protocol=parts.protocol,
                expects_continue=parts.expects_continue,
            )
        )

    def _request_ended(self, request: Request) -> None:
        if not request.frames.is_between_frames:
            raise FrameViolation(ErrorCode.H3_FRAME_ERROR, "stream ends within a frame")
        if request.phase is Phase.HEAD:
            self._refuse(
                request,
                ErrorCode.H3_REQUEST_INCOMPLETE,
                Refusal.HTTP3_TRUNCATED,
                "stream ends without a request",
            )
            return
        if request.content_length is not None and request.received != request.content_length:
            self._refuse(
                request,
                ErrorCode.H3_MESSAGE_ERROR,
                Refusal.BODY_LENGTH_MISMATCH,
                f"body of {request.received} bytes, content-length {request.content_length}",
            )
            return
        request.ended = True
        last = self._events[-1] if self._events else None
        if (
            isinstance(last, RequestReceived | BodyReceived)
            and last.stream_id == request.stream_id
            and not request.trailers
        ):
            last.ended = True
        else:
            self._events.append(BodyEnded(request.stream_id, request.trailers))
        if request.responded:
            self._forget(request)

    def _request_reset(self, stream_id: int) -> None:
        """RESET_STREAM: the peer's side ends, and the request with it unless it was answered."""
        request = self._requests.get(stream_id)
        if request is None:  # reset before anything of it came
            request = self._begin_request(stream_id)
        request.fin = True
        if request.phase is Phase.HEAD or request.blocked:
            self._sections.cancel(stream_id)
        if request.responded:
            self._forget(request)
        else:
            self._given_up(request)

    def _request_stopped(self, stream_id: int) -> None:
        """STOP_SENDING: aioquic has reset our side; nothing that we send would be read."""
        request = self._requests.get(stream_id)
        if request is not None and not request.responded:
            self._given_up(request)

    def _given_up(self, request: Request) -> None:
        if request.phase is not Phase.HEAD:
            self._events.append(StreamReset(request.stream_id))
        self._abort(request, ErrorCode.H3_REQUEST_CANCELLED)
        if not self._resets.spend(self._now):
            raise FrameViolation(
                ErrorCode.H3_EXCESSIVE_LOAD,
                f"more than {RESET_RATE:.0f} cancelled requests a second",
            )

    def _priority_update(self, stream_id: int, value: bytes) -> None:
        """RFC 9218 §7: of a request that is there, or of one that may come next."""
        priority = parse_priority_untrusted(value)
        if stream_id in self._requests:
            self._quic.prioritize(stream_id, priority.urgency, incremental=priority.incremental)
        elif self._next_stream <= stream_id < self._next_stream + 4 * self._max_streams:
            if len(self._early_priorities) >= self._max_streams:
                self._early_priorities.clear()  # of streams that never came
            self._early_priorities[stream_id] = priority

    # Refusing and ending

    def _malformed(self, request: Request, malformed: Malformed) -> None:
        """RFC 9114 §4.1.2: "MUST be treated as a stream error of type H3_MESSAGE_ERROR"."""
        self._refuse(
            request, ErrorCode.H3_MESSAGE_ERROR, Refusal.HTTP3_BAD_HEADERS, malformed.detail
        )

    def _refuse(self, request: Request, code: ErrorCode, reason: Refusal, detail: str) -> None:
        self._events.append(PeerViolation(reason, detail, request.stream_id))
        self._abort(request, code)

    def _section_too_large(self, request: Request) -> None:
        detail = f"field section above {self._largest_section} bytes"
        reason = Refusal.HTTP3_HEADERS_TOO_LARGE
        if request.phase is Phase.HEAD:
            self._events.append(PeerViolation(reason, detail, request.stream_id))
            request.phase = Phase.NOTHING
            self._answer(request, 431)
        else:
            self._refuse(request, ErrorCode.H3_EXCESSIVE_LOAD, reason, detail)

    def _answer(self, request: Request, status: int) -> None:
        """Answer without the application, and read no more of the request."""
        section = self._section(request.stream_id, status, [(b"content-length", b"0")])
        self._send(request, section, ended=True)
        self._stop(request, ErrorCode.H3_NO_ERROR)

    def _abort(self, request: Request, code: ErrorCode) -> None:
        """End both sides of a stream with an error code."""
        self._quic.abort_sending(request.stream_id, code)
        self._paused.discard(request)
        request.responded = True
        self.output_is_due = True
        self._stop(request, code)

    def _stop(self, request: Request, code: ErrorCode) -> None:
        """Read no more of a request whose response is queued or reset."""
        if request.discarding or request.stream_id not in self._requests:
            return
        request.discarding = True
        request.pieces.clear()
        if request.blocked:
            request.blocked = False
            self._sections.cancel(request.stream_id)
        if request.fin:
            self._forget(request)
        else:
            self._quic.stop_receiving(request.stream_id, code)
            self._let_go(request)

    def _stop_early_requests(self) -> None:
        """RFC 9114 §4.1: a response that does not need the rest of its request may end it."""
        requests, self._answered_early = self._answered_early, []
        for request in requests:
            self._stop(request, ErrorCode.H3_NO_ERROR)

    def _forget(self, request: Request) -> None:
        del self._requests[request.stream_id]
        self._paused.discard(request)
        self._let_go(request)

    def _let_go(self, request: Request) -> None:
        """Nobody will read the rest: let the connection's window have it back."""
        if self._quic.release(request.stream_id, request.unread):
            self.output_is_due = True
        request.unread = 0

    def _grant(self, stream_id: int, size: int) -> None:
        if size and self._quic.grant(stream_id, size):
            self.output_is_due = True

    # Our side

    def _open(self, stream_id: int) -> Request | None:
        """The request, if something can still be sent on its stream."""
        request = self._requests.get(stream_id)
        return None if request is None or request.responded else request

    def _section(self, stream_id: int, status: int, headers: Headers) -> bytes:
        fields = [(b":status", b"%d" % status), *headers]
        return frame(HEADERS, self._sections.encode(stream_id, fields))

    def _join(self, request: Request, before: bytes, body: bytes) -> bytes:
        """Put a DATA frame around a body; return what is left to send."""
        head = before + b"\x00" + write_integer(len(body))
        if len(body) <= JOIN_LIMIT:
            return head + body
        self._quic.send(request.stream_id, head)
        return body

    def _send(self, request: Request, data: bytes, *, ended: bool) -> None:
        quic = self._quic
        request.begun = True
        quic.send(request.stream_id, data, ended=ended)
        self.output_is_due = True
        if ended:
            request.responded = True
            if request.ended:
                self._forget(request)
            else:
                self._paused.discard(request)
                self._answered_early.append(request)
        elif not request.paused and quic.unsent(request.stream_id) > self._high_water:
            request.paused = True
            self._paused.add(request)
            self._events.append(StreamPaused(request.stream_id))

    def _resume_paused(self) -> None:
        """Tell of the responses of which little enough waits."""
        for request in list(self._paused):
            if self._quic.unsent(request.stream_id) <= self._low_water:
                self._paused.discard(request)
                request.paused = False
                self._events.append(StreamResumed(request.stream_id))

    def _take_events(self) -> list[Event]:
        if not self._events:
            return []
        events, self._events = self._events, []
        return events

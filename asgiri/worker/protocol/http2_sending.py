"""What leaves on an HTTP/2 connection: responses, credit, resets, GOAWAY. Sans-IO.

Bodies wait in their streams until the peer's windows and the transport let them go; everything else
leaves at once. A stream is kept until both sides have ended and its application has returned.

Responses are written here, all else by h2, which makes an object of each frame and reads fields
twice: 14 us for a response that takes 3. What depends on them is told to h2 all the same: states of
streams, windows, the compression.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from h2.stream import StreamInputs
from hpack import NeverIndexedHeaderTuple

from asgiri.config import FlowConfig
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import (
    ConnectionEnded,
    Event,
    Headers,
    PeerViolation,
    ResponseHead,
    StreamPaused,
    StreamResumed,
)
from asgiri.worker.protocol.headers import take_from_length
from asgiri.worker.protocol.http2_frames import (
    MAX_STREAM_ID,
    ErrorCode,
    Flag,
    FrameType,
    frame,
    frame_header,
)
from asgiri.worker.protocol.http2_streams import SendQueue, Stream

if TYPE_CHECKING:
    from h2.connection import H2Connection

WRITE_BUDGET: Final = 65536
"""Bytes of bodies given out by one `data_to_send`: the transport's buffer decides whether more are
wanted now."""
TUNNEL_LINGER: Final = 2.0
"""Seconds that a peer may take to end its side of a tunnel after we have ended ours. An early
RST_STREAM could reach it before it has read our close frame."""
DRAIN_PING: Final = b"draining"

_BODILESS: Final = (204, 205, 304)
_SECRET: Final = frozenset((b"set-cookie", b"authorization", b"proxy-authenticate"))
_STATUS: Final = {status: (b":status", b"%d" % status) for status in range(100, 1000)}


class Http2Sender:
    """The sending half of `http2.Http2Connection`, which shares its state."""

    def __init__(
        self, connection: H2Connection, flow: FlowConfig, *, now: Callable[[], float]
    ) -> None:
        self._h2 = connection
        self._flow = flow
        self._now = now
        self._streams: dict[int, Stream] = {}
        """Streams of which one side is open, or whose application call has not returned."""
        self._sending = SendQueue(
            connection.local_flow_control_window, lambda: connection.outbound_flow_control_window
        )
        self._unfinished_uploads: list[Stream] = []
        """Answered completely while the peer still sends its body; reset at the next flush."""
        self._lingering: list[tuple[float, Stream]] = []
        """Tunnels that only the peer holds open, and since when."""
        self._sent_events: list[Event] = []
        self._highest_id = 0
        self._last_id = MAX_STREAM_ID
        """Streams above are refused (our GOAWAY)."""
        self._peer_going = False
        self._draining = False
        self._ended = False
        self._out: list[bytes | memoryview] = []
        """Frames written here, in line behind what h2 has queued."""

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
        self._write_headers(stream, fields, ended=finished)
        stream.begun = True
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
            stream.tunnel = stream.begun = True
            self._h2.send_headers(stream.id, [_STATUS[200], *headers])
        return []

    def reset_stream(self, stream_id: int) -> list[Event]:
        if (stream := self._streams.get(stream_id)) and not (stream.local_ended or self._ended):
            # RFC 8441 §5: a tunnel's RST_STREAM with CANCEL is what RST is to TCP.
            self._reset(stream, ErrorCode.CANCEL if stream.tunnel else ErrorCode.INTERNAL_ERROR)
        return []

    def send_ping(self, payload: bytes) -> None:
        """Ask the peer for a sign of life; `payload` is 8 bytes."""
        if not self._ended:
            self._h2.ping(payload)

    def data_to_send(self) -> bytes:
        """At most about WRITE_BUDGET bytes of bodies: call again until it gives b""."""
        if not self._ended:
            self._write_bodies()
        return self.control_to_send()

    def control_to_send(self) -> bytes:
        """Everything but bodies: heads, and answers to what the peer has sent."""
        if self._unfinished_uploads and not self._ended:
            self._reset_unfinished_uploads()
        written = self._h2.data_to_send()
        if self._out:
            written = b"".join((*self._out, written))
            self._out.clear()
        return written

    def sent_events(self) -> list[Event]:
        events, self._sent_events = self._sent_events, []
        return events

    def acknowledge(self, stream_id: int, credit: int) -> list[Event]:
        if (stream := self._streams.get(stream_id)) is not None and not self._ended:
            self._acknowledge(stream, min(credit, stream.unacknowledged))
        return []

    # Ending

    def release(self, stream_id: int) -> list[Event]:
        if (stream := self._streams.get(stream_id)) is None or self._ended:
            return []
        stream.released = True
        self._acknowledge(stream, stream.unacknowledged)
        if stream.local_ended and not stream.remote_ended:
            if stream.tunnel:
                self._lingering.append((self._now(), stream))
            else:
                self._unfinished_uploads.append(stream)
        self._forget_if_done(stream)
        return self._end_if_empty()

    def begin_drain(self) -> list[Event]:
        # "A server that is attempting to gracefully shut down a connection SHOULD send an initial
        # GOAWAY frame with the last stream identifier set to 2^31-1 [...]. After allowing time for
        # any in-flight stream creation (at least one round-trip time) [...]" (RFC 9113 §6.8). The
        # answer to the PING tells that the round trip is over.
        if not self._ended and not self._draining:
            self._draining = True
            self._write_goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR)
            self._h2.ping(DRAIN_PING)
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

    # Time

    def time_out(self, stream_id: int) -> list[Event]:
        """The request's body does not come: answer 408, or break off what has begun."""
        stream = self._writable(stream_id)
        if stream is None:
            return []
        detail = "timeout waiting for the body"
        if not stream.begun:
            self._answer(stream, 408)
            return [PeerViolation(Refusal.BODY_TIMEOUT, detail, stream.id)]
        events: list[Event] = []
        self._give_up(stream, ErrorCode.CANCEL, Refusal.BODY_TIMEOUT, detail, events)
        return events

    def drop_stalled(self, timeout: float) -> list[Event]:
        """Give up the streams whose peer has let nothing through for `timeout` seconds, and tunnels
        that it does not end; the transport asks now and then. Without it a client that never opens
        a window would hold what waits for ever.
        """
        now = self._now()
        events: list[Event] = []
        for stream in self._sending.stalled_since(now - timeout):
            detail = f"no window for {timeout:g} s"
            self._give_up(stream, ErrorCode.CANCEL, Refusal.HTTP2_STALLED, detail, events)
        while self._lingering and self._lingering[0][0] + TUNNEL_LINGER <= now:
            _, stream = self._lingering.pop(0)
            if not stream.remote_ended:
                self._reset(stream, ErrorCode.NO_ERROR)
        return events + self._end_if_empty()

    @property
    def is_idle(self) -> bool:
        return not self._streams

    # Internals: ending streams and the connection

    def _give_up(
        self, stream: Stream, code: ErrorCode, reason: Refusal, detail: str, events: list[Event]
    ) -> None:
        self._reset(stream, code)
        events.append(PeerViolation(reason, detail, stream.id))

    def _answer(self, stream: Stream, status: int) -> None:
        """Answer in the application's place."""
        fields = [_STATUS[status], (b"content-length", b"0")]
        self._write_headers(stream, fields, ended=True)
        stream.begun = True
        self._local_end(stream)

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        # Trailers that break a rule may be what ends an answered stream: h2 has closed it by then.
        if not (stream.local_ended and stream.remote_ended):
            self._h2.reset_stream(stream.id, code)
        self._close(stream)

    def _close(self, stream: Stream) -> None:
        """Both sides are over, in whatever way."""
        stream.local_ended = stream.remote_ended = True
        stream.parts.clear()
        stream.queued = 0
        self._sending.discard(stream)
        self._acknowledge(stream, stream.unacknowledged)
        self._forget_if_done(stream)

    def _local_end(self, stream: Stream) -> None:
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
        self._sent_events.extend(self._end_if_empty())

    def _forget_if_done(self, stream: Stream) -> None:
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

    def _acknowledge(self, stream: Stream, credit: int) -> None:
        if credit:
            stream.unacknowledged -= credit
            self._h2.acknowledge_received_data(credit, stream.id)

    # Internals: sending

    def _writable(self, stream_id: int) -> Stream | None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.ending or stream.local_ended or self._ended:
            return None
        return stream

    def _enqueue(self, stream: Stream, data: bytes, *, ended: bool) -> list[Event]:
        stream.ending = ended
        if data:
            stream.parts.append(data)
            stream.queued += len(data)
        if data or ended:
            self._sending.add(stream)
        if stream.queued <= self._flow.high_water or stream.paused:
            return []
        stream.paused = True
        return [StreamPaused(stream.id)]

    def _write_bodies(self) -> None:
        budget = WRITE_BUDGET
        while budget > 0 and (chosen := self._sending.next(self._now)):
            budget -= self._write_frame(*chosen)

    def _write_frame(self, stream: Stream, window: int) -> int:
        part = stream.take(min(window, self._h2.max_outbound_frame_size))
        ended = stream.ending and not stream.queued
        if part or stream.trailers is None:
            self._write_data(stream, part, ended=ended and stream.trailers is None)
        self._sending.served(stream)
        if not stream.queued:
            self._sending.discard(stream)
        if ended:
            if stream.trailers is not None:
                self._write_headers(stream, stream.trailers, ended=True)
            self._local_end(stream)
            self._sent_events.extend(self._end_if_empty())
        elif stream.paused and stream.queued <= self._flow.low_water:
            stream.paused = False
            self._sent_events.append(StreamResumed(stream.id))
        return len(part)

    def _write_headers(self, stream: Stream, fields: Headers, *, ended: bool) -> None:
        """Write the final head of a response, or its trailers."""
        enter = self._h2.streams[stream.id].state_machine.process_input
        enter(StreamInputs.SEND_HEADERS)
        if ended:
            enter(StreamInputs.SEND_END_STREAM)
        block = self._h2.encoder.encode(fields)
        limit = self._h2.max_outbound_frame_size
        flags = Flag.END_STREAM if ended else 0
        kind = FrameType.HEADERS
        self._out.append(self._h2.data_to_send())
        while len(block) > limit:
            self._out.append(frame(kind, stream.id, block[:limit], flags))
            block, flags, kind = block[limit:], 0, FrameType.CONTINUATION
        self._out.append(frame(kind, stream.id, block, flags | Flag.END_HEADERS))

    def _write_data(self, stream: Stream, part: bytes | memoryview, *, ended: bool) -> None:
        """Write a frame of a body; the windows have been asked."""
        states = self._h2.streams[stream.id]
        states.state_machine.process_input(StreamInputs.SEND_DATA)
        if ended:
            states.state_machine.process_input(StreamInputs.SEND_END_STREAM)
        size, flags = len(part), Flag.END_STREAM if ended else 0
        states.outbound_flow_control_window -= size
        self._h2.outbound_flow_control_window -= size
        header = frame_header(FrameType.DATA, stream.id, size, flags)
        self._out += (self._h2.data_to_send(), header, part)

    def _write_goaway(self, last_id: int, code: ErrorCode) -> None:
        payload = last_id.to_bytes(4) + code.to_bytes(4)
        self._out.append(self._h2.data_to_send())
        self._out.append(frame(FrameType.GOAWAY, 0, payload))


def _protect(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Keep what identifies a user out of the compression context (RFC 7541 §7.1.3)."""
    return NeverIndexedHeaderTuple(*field) if field[0] in _SECRET else field

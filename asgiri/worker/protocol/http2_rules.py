"""Rules for single frames of HTTP/2 that h2 does not keep. Sans-IO.

h2 ends the connection where RFC 9113 asks for a stream error, and reads settings as a dictionary:
of two values it checks the last one, and it keeps those that nobody knows, 65,536 of them. What is
left after these checks is h2's to read.
"""

from __future__ import annotations

import struct
from typing import Final

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.http2_frames import (
    ErrorCode,
    Flag,
    Frame,
    FrameType,
    FrameViolation,
    frame,
)

MAX_ENCODER_TABLE: Final = 4096
"""Bytes that a peer can make the compression of our heads remember, whatever it offers. The default
of RFC 9113 §6.5.2: nothing but a large table of repeated fields gains from more."""
MAX_WINDOW: Final = 2**31 - 1

_SETTING: Final = struct.Struct("!HI")
_HEADER_TABLE_SIZE: Final = 1
_INITIAL_WINDOW_SIZE: Final = 4
_KNOWN_SETTINGS: Final = {
    _HEADER_TABLE_SIZE: (0, 2**32 - 1),
    2: (0, 1),  # ENABLE_PUSH
    3: (0, 2**32 - 1),  # MAX_CONCURRENT_STREAMS
    _INITIAL_WINDOW_SIZE: (0, MAX_WINDOW),
    5: (2**14, 2**24 - 1),  # MAX_FRAME_SIZE
    6: (0, 2**32 - 1),  # MAX_HEADER_LIST_SIZE
    8: (0, 1),  # ENABLE_CONNECT_PROTOCOL (RFC 8441 §3)
    9: (0, 1),  # NO_RFC7540_PRIORITIES (RFC 9218 §2.1)
}
"""What a setting may be (RFC 9113 §6.5.2)."""


class StreamViolation(Exception):
    """A stream error (RFC 9113 §5.4.2), for a stream that is open."""

    def __init__(self, code: ErrorCode, reason: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.reason = reason
        self.detail = detail


def check_first(received: Frame) -> None:
    """Raise FrameViolation unless the frame is one that a connection may begin with."""
    if received.kind != FrameType.SETTINGS or received.flags & Flag.ACK:
        # "This sequence MUST be followed by a SETTINGS frame" (RFC 9113 §3.4).
        raise FrameViolation(
            ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_BAD_PREFACE, "no SETTINGS behind the preface"
        )


def read_settings(received: Frame) -> Frame:
    """Check all values in their order; give those that matter to h2, or raise FrameViolation."""
    payload = received.payload
    if received.flags & Flag.ACK:
        if payload:
            raise _size_error("acknowledgment of SETTINGS with content")
        return received
    if received.stream_id or len(payload) % _SETTING.size:
        return received  # h2 has the right answers to these
    kept = []
    for number, value in _SETTING.iter_unpack(payload):
        if number not in _KNOWN_SETTINGS:
            continue
        least, most = _KNOWN_SETTINGS[number]
        if not least <= value <= most:
            window = number == _INITIAL_WINDOW_SIZE
            code = ErrorCode.FLOW_CONTROL_ERROR if window else ErrorCode.PROTOCOL_ERROR
            reason = Refusal.HTTP2_FLOW_CONTROL if window else Refusal.HTTP2_PROTOCOL_ERROR
            raise FrameViolation(code, reason, f"setting {number} is {value}")
        if number == _HEADER_TABLE_SIZE:
            value = min(value, MAX_ENCODER_TABLE)
        kept.append(_SETTING.pack(number, value))
    return _rebuilt(received, b"".join(kept))


def read_window_update(received: Frame, *, stream_is_open: bool) -> Frame:
    """Give the frame without the reserved bit; raise for an increment of 0."""
    payload = received.payload
    if len(payload) != 4:
        return received  # h2: FRAME_SIZE_ERROR
    increment = int.from_bytes(payload) & MAX_WINDOW
    if increment == 0:
        detail = "WINDOW_UPDATE by 0"
        if stream_is_open:
            raise StreamViolation(ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_FLOW_CONTROL, detail)
        if received.stream_id == 0:
            raise FrameViolation(ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_FLOW_CONTROL, detail)
    if increment == int.from_bytes(payload):
        return received
    return _rebuilt(received, increment.to_bytes(4))


def check_priority(received: Frame, *, stream_is_open: bool) -> None:
    """Raise for a malformed PRIORITY. A good one means nothing: we announce so (RFC 9218 §2.1)."""
    if received.stream_id == 0:
        detail = "PRIORITY on stream 0"
        raise FrameViolation(ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_PROTOCOL_ERROR, detail)
    if len(received.payload) != 5:
        detail = f"PRIORITY of {len(received.payload)} bytes"
        if stream_is_open:
            raise StreamViolation(ErrorCode.FRAME_SIZE_ERROR, Refusal.HTTP2_FRAME_SIZE, detail)
        raise _size_error(detail)


def without_priority(received: Frame) -> Frame:
    """Take the priority out of HEADERS: h2 refuses some that mean nothing any more."""
    payload = received.payload
    start = 1 if received.flags & Flag.PADDED else 0
    if len(payload) < start + 5:
        raise _size_error("HEADERS with a priority that is cut")
    rest = payload[:start] + payload[start + 5 :]
    return _rebuilt(received, rest, received.flags & ~Flag.PRIORITY)


def with_end(received: Frame) -> Frame:
    """Set END_STREAM."""
    return _rebuilt(received, received.payload, received.flags | Flag.END_STREAM)


def _rebuilt(received: Frame, payload: bytes, flags: int | None = None) -> Frame:
    flags = received.flags if flags is None else flags
    kind = received.kind
    assert kind is not None
    raw = frame(FrameType(kind), received.stream_id, payload, flags)
    return Frame(kind, flags, received.stream_id, raw)


def _size_error(detail: str) -> FrameViolation:
    return FrameViolation(ErrorCode.FRAME_SIZE_ERROR, Refusal.HTTP2_FRAME_SIZE, detail)

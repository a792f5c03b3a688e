"""Cuts what an HTTP/2 peer sends into frames before h2 sees them. Sans-IO.

h2 is fed one frame at a time, for four reasons: the events of the frames before a bad one are not
lost; floods are counted before h2 and HPACK spend time on them; frames that h2 does not know
(PRIORITY_UPDATE) are read here; and GOAWAY does not reach h2, which would refuse to send the
responses that are still owed (RFC 9113 §6.8).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final, NamedTuple

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.sniff import HTTP2_PREFACE

FRAME_HEADER_SIZE: Final = 9
MAX_STREAM_ID: Final = 2**31 - 1
MAX_FRAME_SIZE: Final = 16384
"""SETTINGS_MAX_FRAME_SIZE is left at its default: larger frames would only make streams wait for
each other."""
MAX_HEADER_BLOCK_FRAMES: Final = 60
"""HEADERS and CONTINUATION frames of one head; by default a full one takes 5. h2 ends a connection
at 64 for an error of the protocol, which does not name the flood."""


class FrameType(enum.IntEnum):
    """RFC 9113 §6, RFC 9218 §7.1."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9
    PRIORITY_UPDATE = 0x10


class Flag(enum.IntEnum):
    """The flags we look at. Several of them together are a plain number."""

    END_STREAM = 0x1
    ACK = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


class ErrorCode(enum.IntEnum):
    """RFC 9113 §7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Frame(NamedTuple):
    """One whole frame; `raw` includes its header. `kind` is None for the connection preface."""

    kind: int | None
    flags: int
    stream_id: int
    raw: bytes

    @property
    def payload(self) -> bytes:
        return self.raw[FRAME_HEADER_SIZE:]


class FrameViolation(Exception):
    """The bytes can't be cut into frames that we accept. Carries the code for GOAWAY."""

    def __init__(self, code: ErrorCode, reason: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.reason = reason
        self.detail = detail


class FrameCutter:
    """Holds at most one incomplete frame, 16 KiB and its header."""

    def __init__(self, *, max_header_block: int) -> None:
        self._buffer = b""
        self._preface_left = HTTP2_PREFACE
        self._max_header_block = max_header_block
        self._header_block = 0
        self._header_block_frames = 0
        self.in_header_block = False
        """A HEADERS frame waits for its CONTINUATION, and nothing else may come (RFC 9113
        §6.10)."""

    def receive_untrusted(self, data: bytes) -> Iterator[Frame]:
        """Give the frames that `data` completes.

        Raises FrameViolation for a frame longer than allowed, and for a header block that goes on
        for too long (VU#421644): the connection can't continue. Frames before it have been given.
        """
        buffer = self._buffer + data if self._buffer else data
        offset = 0
        if self._preface_left:
            # h2 compares it: "Clients and servers MUST treat an invalid connection preface as a
            # connection error" (RFC 9113 §3.4).
            offset = min(len(self._preface_left), len(buffer))
            self._preface_left = self._preface_left[offset:]
            yield Frame(None, 0, 0, buffer[:offset])
        size = len(buffer)
        while size - offset >= FRAME_HEADER_SIZE:
            length = int.from_bytes(buffer[offset : offset + 3])
            end = offset + FRAME_HEADER_SIZE + length
            kind, flags = buffer[offset + 3], buffer[offset + 4]
            self._check(kind, flags, length)
            if end > size:
                break
            stream_id = int.from_bytes(buffer[offset + 5 : offset + 9]) & MAX_STREAM_ID
            yield Frame(kind, flags, stream_id, buffer[offset:end])
            if kind in (FrameType.HEADERS, FrameType.CONTINUATION):
                self.in_header_block = not flags & Flag.END_HEADERS
                self._header_block = self._header_block + length if self.in_header_block else 0
                self._header_block_frames = (
                    self._header_block_frames + 1 if self.in_header_block else 0
                )
            offset = end
        self._buffer = buffer[offset:]

    def _check(self, kind: int, flags: int, length: int) -> None:
        if length > MAX_FRAME_SIZE:
            # "An endpoint MUST send an error code of FRAME_SIZE_ERROR if a frame exceeds the size
            # defined in SETTINGS_MAX_FRAME_SIZE" (RFC 9113 §4.2).
            raise FrameViolation(
                ErrorCode.FRAME_SIZE_ERROR,
                Refusal.HTTP2_FRAME_SIZE,
                f"frame of {length} bytes, at most {MAX_FRAME_SIZE} are allowed",
            )
        if kind != FrameType.CONTINUATION:
            return
        if self._header_block + length > self._max_header_block:
            limit = f"{self._max_header_block} bytes"
        elif self._header_block_frames >= MAX_HEADER_BLOCK_FRAMES:
            limit = f"{MAX_HEADER_BLOCK_FRAMES} frames"
        else:
            return
        raise FrameViolation(
            ErrorCode.ENHANCE_YOUR_CALM,
            Refusal.HTTP2_CONTINUATION_FLOOD,
            f"header block goes on beyond {limit}",
        )


def check_goaway(received: Frame) -> None:
    """Raise FrameViolation for a GOAWAY that h2 would refuse, but does not see."""
    if received.stream_id != 0:
        raise _protocol_error("GOAWAY on a stream")
    if len(received.payload) < 8:
        raise _too_short("GOAWAY")


def parse_priority_update(received: Frame) -> tuple[int, bytes]:
    """Return the stream and the field value (RFC 9218 §7.1), or raise FrameViolation."""
    if received.stream_id != 0:
        raise _protocol_error("PRIORITY_UPDATE on a stream")
    payload = received.payload
    if len(payload) < 4:
        raise _too_short("PRIORITY_UPDATE")
    stream_id = int.from_bytes(payload[:4]) & MAX_STREAM_ID
    if stream_id % 2 == 0:
        raise _protocol_error(f"PRIORITY_UPDATE for stream {stream_id}")
    return stream_id, payload[4:]


def _protocol_error(detail: str) -> FrameViolation:
    return FrameViolation(ErrorCode.PROTOCOL_ERROR, Refusal.HTTP2_PROTOCOL_ERROR, detail)


def _too_short(name: str) -> FrameViolation:
    detail = f"{name} too short"
    return FrameViolation(ErrorCode.FRAME_SIZE_ERROR, Refusal.HTTP2_FRAME_SIZE, detail)


def frame(kind: FrameType, stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    """Write a frame."""
    return frame_header(kind, stream_id, len(payload), flags) + payload


def frame_header(kind: FrameType, stream_id: int, size: int, flags: int = 0) -> bytes:
    """Write what goes before a payload of so many bytes."""
    return b"%b%c%c%b" % (size.to_bytes(3), kind, flags, stream_id.to_bytes(4))

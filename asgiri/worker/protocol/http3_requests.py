"""A request stream of HTTP/3: its record, and the reader of its frames (RFC 9114 §4.1). Sans-IO."""

from __future__ import annotations

import enum
from typing import Final

from asgiri.worker.protocol.events import Headers
from asgiri.worker.protocol.http3_frames import (
    DATA,
    HEADERS,
    NOT_ON_REQUESTS,
    ErrorCode,
    FrameViolation,
    read_integer,
)

TOO_LARGE: Final = -1
"""Kind of the piece that stands for a field section beyond the limit."""


class FrameReader:
    """Cuts a request stream into pieces: (HEADERS, field section), (DATA, part of a body),
    (TOO_LARGE, b"").

    Frames of unknown type are skipped as they come (RFC 9114 §9).
    """

    __slots__ = ("_buffer", "_largest_section", "in_data", "left")

    def __init__(self, largest_section: int) -> None:
        self._buffer = b""
        self._largest_section = largest_section
        self.left = 0
        """Bytes to come of the frame that is read in parts."""
        self.in_data = False
        """That frame is DATA."""

    @property
    def is_between_frames(self) -> bool:
        return not self.left and not self._buffer

    def read(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take what has come; raise FrameViolation for what ends the connection."""
        if self._buffer:
            data = self._buffer + data
        pieces: list[tuple[int, bytes]] = []
        offset = 0
        size = len(data)
        while offset < size:
            if self.left:
                part = data[offset : offset + self.left]
                offset += len(part)
                self.left -= len(part)
                if self.in_data:
                    pieces.append((DATA, part))
                continue
            kind, start = read_integer(data, offset)
            length, start = read_integer(data, start) if start > 0 else (0, -1)
            if start < 0:
                break
            if kind == HEADERS and length <= self._largest_section:
                if start + length > size:
                    break
                pieces.append((HEADERS, data[start : start + length]))
                offset = start + length
                continue
            if kind in NOT_ON_REQUESTS:
                raise FrameViolation(
                    ErrorCode.H3_FRAME_UNEXPECTED, f"frame {kind:#x} on a request stream"
                )
            if kind == HEADERS:
                pieces.append((TOO_LARGE, b""))
            elif kind == DATA and not length:
                pieces.append((DATA, b""))  # it counts where no DATA may come
            self.in_data = kind == DATA
            self.left = length
            offset = start
        self._buffer = data[offset:]
        return pieces


class Phase(enum.Enum):
    """What may come next on a request stream."""

    HEAD = enum.auto()
    BODY = enum.auto()
    """DATA, or the trailers."""
    TUNNEL = enum.auto()
    """DATA only (RFC 9114 §4.4)."""
    NOTHING = enum.auto()
    """Trailers have come."""


class Request:
    """A client-initiated bidirectional stream. Each side ends on its own."""

    __slots__ = (
        "begun",
        "blocked",
        "bodiless",
        "content_length",
        "discarding",
        "ended",
        "fin",
        "frames",
        "length_left",
        "paused",
        "phase",
        "pieces",
        "received",
        "responded",
        "since",
        "stream_id",
        "trailers",
        "unread",
    )

    def __init__(self, stream_id: int, largest_section: int, now: float) -> None:
        self.stream_id = stream_id
        self.since = now
        self.frames = FrameReader(largest_section)
        self.phase = Phase.HEAD
        # The peer's side
        self.fin = False
        """QUIC will deliver no more."""
        self.ended = False
        """The request is complete and its end has been reported."""
        self.blocked = False
        """A field section waits for the QPACK encoder stream."""
        self.pieces: list[tuple[int, bytes]] = []
        """What came behind it."""
        self.discarding = False
        """The exchange is over; only the end of the peer's side is awaited."""
        self.content_length: int | None = None
        self.received = 0
        self.unread = 0
        """Bytes of body given to the application and not acknowledged."""
        self.trailers: Headers = []
        # Our side
        self.begun = False
        """Something was sent."""
        self.bodiless = False
        """The response has no body, whatever the application sends."""
        self.length_left: int | None = None
        """What the response's content-length still leaves for its body."""
        self.responded = False
        """FIN is queued, or the side was reset."""
        self.paused = False

"""The client's unidirectional streams of an HTTP/3 connection (RFC 9114 §6.2, §7.2). Sans-IO."""

from __future__ import annotations

from typing import Final

from asgiri.worker.protocol.http3_frames import (
    CANCEL_PUSH,
    GOAWAY,
    MAX_PUSH_ID,
    NOT_ON_CONTROL,
    PRIORITY_UPDATE,
    PRIORITY_UPDATE_PUSH,
    SETTINGS,
    ErrorCode,
    FrameViolation,
    StreamType,
    read_integer,
    read_settings,
    read_single_integer,
)
from asgiri.worker.protocol.qpack import FieldSections

LARGEST_CONTROL_FRAME: Final = 4096
"""Of those whose content we read. 256 settings of the longest form fit; real clients send ten."""

_READ: Final = frozenset(
    (SETTINGS, GOAWAY, CANCEL_PUSH, MAX_PUSH_ID, PRIORITY_UPDATE, PRIORITY_UPDATE_PUSH)
)
_CRITICAL: Final = frozenset(
    (StreamType.CONTROL, StreamType.QPACK_ENCODER, StreamType.QPACK_DECODER)
)
_UNKNOWN: Final = -1


class ClientStreams:
    """Give it what comes; it raises FrameViolation for what ends the connection."""

    __slots__ = ("_kinds", "_prefixes", "_sections", "control", "unblocked", "unwanted")

    def __init__(self, sections: FieldSections) -> None:
        self._sections = sections
        self._kinds: dict[int, int] = {}
        self._prefixes: dict[int, bytes] = {}
        """The first bytes of streams whose type is not complete."""
        self.control = ControlStream()
        self.unblocked: list[int] = []
        """Requests that had to wait for the encoder stream, for the caller to resume."""
        self.unwanted: list[int] = []
        """Streams that the caller shall ask the peer to stop."""

    def receive(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        kind = self._kinds.get(stream_id)
        if kind is None:
            data = self._prefixes.pop(stream_id, b"") + data
            value, offset = read_integer(data, 0)
            if offset < 0:
                if not ended:
                    self._prefixes[stream_id] = data
                return
            kind = self._identify(stream_id, value)
            data = data[offset:]
        if kind == _UNKNOWN:
            if ended:
                del self._kinds[stream_id]
        elif ended:
            raise FrameViolation(ErrorCode.H3_CLOSED_CRITICAL_STREAM, f"end of stream {stream_id}")
        elif kind == StreamType.CONTROL:
            self.control.receive(data)
        elif kind == StreamType.QPACK_ENCODER:
            self.unblocked += self._sections.encoder_stream_received(data)
        else:
            self._sections.decoder_stream_received(data)

    def reset(self, stream_id: int) -> None:
        """The peer gave a stream up."""
        self._prefixes.pop(stream_id, None)
        if self._kinds.pop(stream_id, _UNKNOWN) in _CRITICAL:
            raise FrameViolation(
                ErrorCode.H3_CLOSED_CRITICAL_STREAM, f"reset of stream {stream_id}"
            )

    def _identify(self, stream_id: int, kind: int) -> int:
        if kind == StreamType.PUSH or (kind in _CRITICAL and kind in self._kinds.values()):
            raise FrameViolation(
                ErrorCode.H3_STREAM_CREATION_ERROR, f"stream {stream_id} of type {kind}"
            )
        if kind not in _CRITICAL:
            self.unwanted.append(stream_id)
            kind = _UNKNOWN
        self._kinds[stream_id] = kind
        return kind


class ControlStream:
    """Reads the frames behind the stream's type."""

    __slots__ = ("_buffer", "_goaway", "_max_push_id", "_skip", "priorities", "settings")

    def __init__(self) -> None:
        self._buffer = b""
        self._skip = 0
        self._goaway: int | None = None
        self._max_push_id = -1
        self.settings: dict[int, int] | None = None
        """None until the peer's SETTINGS came."""
        self.priorities: list[tuple[int, bytes]] = []
        """Request stream and field value of each PRIORITY_UPDATE (RFC 9218 §7.2), for the
        caller."""

    def receive(self, data: bytes) -> None:
        """Read frames; what is incomplete waits for more."""
        if self._buffer:
            data = self._buffer + data
        offset = 0
        while offset < len(data):
            if self._skip:
                skipped = min(self._skip, len(data) - offset)
                self._skip -= skipped
                offset += skipped
                continue
            end = self._frame(data, offset)
            if end < 0:
                break
            offset = end
        self._buffer = data[offset:]

    def _frame(self, data: bytes, offset: int) -> int:
        """Read one frame; return where it ends, or -1 when it has not come in full."""
        kind, start = read_integer(data, offset)
        length, start = read_integer(data, start) if start > 0 else (0, -1)
        if start < 0:
            return -1
        self._check_order(kind)
        if kind not in _READ:  # RFC 9114 §9: "MUST discard frames [...] that have unknown types"
            self._skip = length
            return start
        if length > LARGEST_CONTROL_FRAME:
            raise FrameViolation(
                ErrorCode.H3_EXCESSIVE_LOAD, f"control frame {kind:#x} of {length} bytes"
            )
        end = start + length
        if end > len(data):
            return -1
        self._content(kind, data[start:end])
        return end

    def _check_order(self, kind: int) -> None:
        """Refuse by the type alone, before anything of the content is kept."""
        if self.settings is None and kind != SETTINGS:
            raise FrameViolation(
                ErrorCode.H3_MISSING_SETTINGS, f"control stream begins with frame {kind:#x}"
            )
        if kind in NOT_ON_CONTROL or (kind == SETTINGS and self.settings is not None):
            raise FrameViolation(
                ErrorCode.H3_FRAME_UNEXPECTED, f"frame {kind:#x} on the control stream"
            )

    def _content(self, kind: int, payload: bytes) -> None:
        if kind == SETTINGS:
            self.settings = read_settings(payload)
        elif kind == GOAWAY:
            push_id = read_single_integer(payload, "GOAWAY")
            if self._goaway is not None and push_id > self._goaway:
                raise FrameViolation(ErrorCode.H3_ID_ERROR, "GOAWAY with a growing push ID")
            self._goaway = push_id
        elif kind == MAX_PUSH_ID:
            push_id = read_single_integer(payload, "MAX_PUSH_ID")
            if push_id < self._max_push_id:
                raise FrameViolation(ErrorCode.H3_ID_ERROR, "MAX_PUSH_ID with a shrinking push ID")
            self._max_push_id = push_id
        elif kind == PRIORITY_UPDATE:
            self._priority_update(payload)
        else:
            # CANCEL_PUSH, PRIORITY_UPDATE_PUSH: we promise none, so every push ID is unknown
            # (RFC 9114 §7.2.3, RFC 9218 §7.2).
            raise FrameViolation(ErrorCode.H3_ID_ERROR, f"frame {kind:#x} names a push")

    def _priority_update(self, payload: bytes) -> None:
        stream_id, end = read_integer(payload, 0)
        if end < 0:
            raise FrameViolation(ErrorCode.H3_FRAME_ERROR, "PRIORITY_UPDATE without an element ID")
        if stream_id & 3:
            raise FrameViolation(ErrorCode.H3_ID_ERROR, f"priority of stream {stream_id}")
        self.priorities.append((stream_id, payload[end:]))

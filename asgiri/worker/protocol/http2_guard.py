"""What an HTTP/2 peer may make us do for nothing, and how often. Sans-IO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.budget import Budget
from asgiri.worker.protocol.http2_frames import (
    FRAME_HEADER_SIZE,
    ErrorCode,
    Flag,
    Frame,
    FrameType,
    FrameViolation,
)

CONTROL_BURST: Final = 1000
CONTROL_PER_SECOND: Final = 50.0
"""Frames that ask for work but carry none of it: SETTINGS, PING, PRIORITY, RST_STREAM, empty DATA,
unknown ones (CVE-2019-9511 to 9518). A browser sends about 5 per page, nghttp2 one WINDOW_UPDATE
for each 32 KiB it receives."""
LATE_BURST: Final = 10_000
LATE_PER_SECOND: Final = 500.0
"""DATA and HEADERS on streams that are over: h2 answers each with RST_STREAM. What was on its way
when we reset an upload comes late through no fault of the client: 1 MiB of window in frames of 100
bytes."""
RESET_PERIOD: Final = 60.0
"""Seconds that `Http2Config.max_resets` is counted over."""

_FLOOD_REASONS: Final[dict[int | None, Refusal]] = {
    FrameType.SETTINGS: Refusal.HTTP2_SETTINGS_FLOOD,
    FrameType.PING: Refusal.HTTP2_PING_FLOOD,
    FrameType.PRIORITY: Refusal.HTTP2_PRIORITY_FLOOD,
    FrameType.PRIORITY_UPDATE: Refusal.HTTP2_PRIORITY_FLOOD,
    FrameType.RST_STREAM: Refusal.HTTP2_RESET_FLOOD,
}


class FloodGuard:
    """Its methods raise FrameViolation, which ends the connection, once it is too much."""

    def __init__(self, *, max_resets: int, now: Callable[[], float]) -> None:
        self._max_resets = max_resets
        self._now = now
        self._control = Budget(burst=CONTROL_BURST, per_second=CONTROL_PER_SECOND)
        self._late = Budget(burst=LATE_BURST, per_second=LATE_PER_SECOND)
        self._resets = Budget(burst=max_resets, per_second=max_resets / RESET_PERIOD)

    def receive(self, frame: Frame) -> None:
        """Count a frame if it is of those that carry nothing."""
        match frame.kind:
            case None | FrameType.HEADERS | FrameType.CONTINUATION | FrameType.WINDOW_UPDATE:
                return
            case FrameType.DATA if (
                len(frame.raw) > FRAME_HEADER_SIZE or frame.flags & Flag.END_STREAM
            ):
                return
        if not self._control.spend(self._now()):
            raise FrameViolation(
                ErrorCode.ENHANCE_YOUR_CALM,
                _FLOOD_REASONS.get(frame.kind, Refusal.HTTP2_EMPTY_FRAME_FLOOD),
                f"more than {CONTROL_BURST} frames of no use",
            )

    def receive_late(self) -> None:
        """Count a DATA or HEADERS frame on a stream that its sender has ended, or that is reset."""
        if not self._late.spend(self._now()):
            raise FrameViolation(
                ErrorCode.ENHANCE_YOUR_CALM,
                Refusal.HTTP2_STREAM_CLOSED,
                f"more than {LATE_BURST} frames on streams that are over",
            )

    def reset(self) -> None:
        """Count a stream that ended by RST_STREAM, the peer's or one that it made us send
        (CVE-2023-44487; CVE-2025-8671, MadeYouReset).
        """
        if not self._resets.spend(self._now()):
            raise FrameViolation(
                ErrorCode.ENHANCE_YOUR_CALM,
                Refusal.HTTP2_RESET_FLOOD,
                f"more than {self._max_resets} streams reset in {RESET_PERIOD:g} s",
            )

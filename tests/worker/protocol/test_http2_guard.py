"""Frames and resets that a peer may send for nothing, and when it is too much."""

import pytest

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.http2_frames import (
    ErrorCode,
    Flag,
    Frame,
    FrameType,
    FrameViolation,
    frame,
)
from asgiri.worker.protocol.http2_guard import CONTROL_BURST, CONTROL_PER_SECOND, FloodGuard


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def received(kind, payload=b"", flags=0):
    return Frame(kind, flags, 1, frame(kind or FrameType.DATA, 1, payload, flags))


USEFUL = {
    "preface": received(None),
    "head": received(FrameType.HEADERS),
    "rest of a head": received(FrameType.CONTINUATION),
    "window": received(FrameType.WINDOW_UPDATE),
    "body": received(FrameType.DATA, b"x"),
    "end of a body": received(FrameType.DATA, b"", Flag.END_STREAM),
}


@pytest.mark.parametrize("useful", USEFUL.values(), ids=USEFUL)
def test_what_is_of_use_costs_nothing(useful):
    guard = FloodGuard(max_resets=1, now=Clock())
    for _ in range(3 * CONTROL_BURST):
        guard.receive(useful)


USELESS = {
    FrameType.PING: Refusal.HTTP2_PING_FLOOD,
    FrameType.SETTINGS: Refusal.HTTP2_SETTINGS_FLOOD,
    FrameType.PRIORITY: Refusal.HTTP2_PRIORITY_FLOOD,
    FrameType.PRIORITY_UPDATE: Refusal.HTTP2_PRIORITY_FLOOD,
    FrameType.RST_STREAM: Refusal.HTTP2_RESET_FLOOD,
    FrameType.DATA: Refusal.HTTP2_EMPTY_FRAME_FLOOD,
    0x77: Refusal.HTTP2_EMPTY_FRAME_FLOOD,
}


@pytest.mark.parametrize(("kind", "reason"), USELESS.items())
def test_what_is_of_no_use_is_counted(kind, reason):
    clock = Clock()
    guard = FloodGuard(max_resets=1, now=clock)
    for _ in range(CONTROL_BURST):
        guard.receive(received(kind))
    with pytest.raises(FrameViolation) as violation:
        guard.receive(received(kind))
    assert violation.value.code is ErrorCode.ENHANCE_YOUR_CALM
    assert violation.value.reason is reason
    clock.now += 1
    for _ in range(int(CONTROL_PER_SECOND)):
        guard.receive(received(kind))


def test_resets_are_counted_by_the_minute():
    clock = Clock()
    guard = FloodGuard(max_resets=6, now=clock)
    for _ in range(6):
        guard.reset()
    clock.now += 10
    guard.reset()
    with pytest.raises(FrameViolation) as violation:
        guard.reset()
    assert violation.value.reason is Refusal.HTTP2_RESET_FLOOD

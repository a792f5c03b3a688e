"""One timer of the loop for many connections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from asgiri.worker.transport.timers import NEVER, Timers


class Member:
    """Remembers when it was called."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.timer_at = NEVER
        self.timer_entry = NEVER
        self.calls: list[float] = []
        self.on_call: Callable[[], None] = lambda: None

    def timer_reached(self, now: float) -> None:
        self.calls.append(now)
        self.on_call()


class ManualLoop:
    """Just enough of an event loop, with a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.handles: list[ManualHandle] = []
        self.armed = 0

    def call_later(self, delay: float, callback: Callable[..., None]) -> ManualHandle:
        self.armed += 1
        handle = ManualHandle(self.now + delay, callback)
        self.handles.append(handle)
        return handle

    def advance(self, until: float) -> None:
        while True:
            due = [handle for handle in self.handles if handle.at <= until and not handle.cancelled]
            if not due:
                break
            handle = min(due, key=lambda handle: handle.at)
            self.handles.remove(handle)
            self.now = max(self.now, handle.at)
            handle.callback()
        self.now = until


class ManualHandle:
    def __init__(self, at: float, callback: Callable[..., None]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def loop() -> Any:
    return ManualLoop()


@pytest.fixture
def timers(loop: Any) -> Timers:
    return Timers(loop, lambda: loop.now)


def test_members_are_called_in_order_and_once(loop: Any, timers: Timers):
    order = []
    for at in (103.0, 101.0, 102.0):
        member = Member(str(at))
        member.on_call = lambda name=member.name: order.append(name)
        timers.set(member, at)
    loop.advance(110.0)
    assert order == ["101.0", "102.0", "103.0"]


def test_a_timer_may_move_to_later_and_to_earlier(loop: Any, timers: Timers):
    later, earlier, off = Member(), Member(), Member()
    for member in (later, earlier, off):
        timers.set(member, 102.0)
    timers.set(later, 105.0)
    timers.set(earlier, 101.0)
    timers.set(off, NEVER)
    loop.advance(101.5)
    assert (len(earlier.calls), len(later.calls)) == (1, 0)
    loop.advance(104.0)
    assert (len(earlier.calls), len(later.calls)) == (1, 0)
    loop.advance(106.0)
    assert (len(later.calls), len(off.calls)) == (1, 0)


def test_moving_to_later_arms_nothing(loop: Any, timers: Timers):
    member = Member()
    timers.set(member, 101.0)
    for step in range(1000):
        timers.set(member, 101.0 + step)
    assert loop.armed == 1
    assert len(timers._heap) == 1


def test_a_member_may_set_its_timer_while_it_is_called(loop: Any, timers: Timers):
    member = Member()
    member.on_call = lambda: timers.set(member, loop.now + 1)
    timers.set(member, 101.0)
    loop.advance(105.5)
    assert len(member.calls) == 5


def test_what_is_due_at_once_is_called_at_once(loop: Any, timers: Timers):
    member = Member()
    timers.set(member, 50.0)
    loop.advance(100.0)
    assert member.calls == [pytest.approx(100.0, abs=0.001)]


def test_a_member_is_told_a_time_that_is_not_before_its_own(loop: Any, timers: Timers):
    """The loop's timer may be half a millisecond early; aioquic would find nothing due."""
    member = Member()
    timers.set(member, 101.0004)
    loop.handles[0].at = 101.0
    loop.advance(101.0)
    assert member.calls[0] >= 101.0004


def test_nobody_is_called_after_the_end(loop: Any, timers: Timers):
    member = Member()
    timers.close()
    timers.set(member, 101.0)
    timers.close()
    loop.advance(110.0)
    assert member.calls == []


def test_it_does_what_a_timer_each_would_do(loop: Any, timers: Timers):
    randomness = random.Random(5)
    members = [Member(str(number)) for number in range(20)]
    expected: dict[Member, float] = {}
    for _ in range(2000):
        member = randomness.choice(members)
        if randomness.random() < 0.1:
            timers.set(member, NEVER)
            expected.pop(member, None)
        else:
            at = loop.now + randomness.random()
            timers.set(member, at)
            expected[member] = at
        calls = {other: len(other.calls) for other in members}
        loop.advance(loop.now + randomness.random() * 0.05)
        for other in members:
            was_due = other in expected and expected[other] <= loop.now + 0.0005
            may_be_due = other in expected and expected[other] <= loop.now
            called = len(other.calls) - calls[other]
            assert called <= was_due
            assert called >= may_be_due
            if called:
                del expected[other]


async def test_it_runs_on_a_real_loop():
    loop = asyncio.get_running_loop()
    timers = Timers(loop, loop.time)
    called = asyncio.Event()
    member = Member()
    member.on_call = called.set
    timers.set(member, loop.time() + 0.005)
    await asyncio.wait_for(called.wait(), 5)
    timers.close()

"""The event loop on real descriptors, once with epoll and once with what other systems have."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator

import pytest

from asgiri.master.loop import COMPACT_ABOVE, EventLoop, _EpollPoller, _SelectorPoller

POLLERS = [_SelectorPoller] + ([_EpollPoller] if hasattr(select, "epoll") else [])


@pytest.fixture(params=POLLERS, ids=lambda poller: poller.__name__)
def loop(request) -> Iterator[EventLoop]:
    loop = EventLoop(request.param())
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_readable_descriptor_calls_back_until_it_is_read(loop, pair):
    ours, theirs = pair
    calls = []
    loop.watch_readable(ours.fileno(), lambda: calls.append("read"))
    theirs.send(b"x")
    loop.turn(1)
    loop.turn(1)
    assert calls == ["read", "read"]
    ours.recv(1)
    loop.turn(0)
    assert len(calls) == 2


def test_readable_and_writable_are_told_apart(loop, pair):
    ours, theirs = pair
    calls = []
    loop.watch_readable(ours.fileno(), lambda: calls.append("read"))
    loop.watch_writable(ours.fileno(), lambda: calls.append("write"))
    loop.turn(1)
    assert calls == ["write"]
    theirs.send(b"x")
    loop.turn(1)
    assert calls == ["write", "read", "write"]
    loop.unwatch_writable(ours.fileno())
    loop.turn(1)
    assert calls[3:] == ["read"]
    assert loop.is_watched(ours.fileno())
    loop.unwatch_readable(ours.fileno())
    assert not loop.is_watched(ours.fileno())
    loop.turn(0)
    assert len(calls) == 4


def test_hang_up_wakes_the_reader(loop, pair):
    ours, theirs = pair
    calls = []
    loop.watch_readable(ours.fileno(), lambda: calls.append(ours.recv(10)))
    theirs.close()
    loop.turn(1)
    assert calls == [b""]


def test_descriptor_unwatched_by_an_earlier_callback_of_the_turn_is_left_alone(loop):
    first, first_peer = socket.socketpair()
    second, second_peer = socket.socketpair()
    with first, first_peer, second, second_peer:
        calls = []

        def callback() -> None:
            calls.append(1)
            loop.unwatch(first.fileno())
            loop.unwatch(second.fileno())

        loop.watch_readable(first.fileno(), callback)
        loop.watch_readable(second.fileno(), callback)
        first_peer.send(b"x")
        second_peer.send(b"x")
        loop.turn(1)
        loop.turn(0)
        assert calls == [1]


def test_unwatching_twice_or_unknown_descriptors_does_nothing(loop, pair):
    loop.unwatch(pair[0].fileno())
    loop.watch_readable(pair[0].fileno(), lambda: None)
    loop.unwatch(pair[0].fileno())
    loop.unwatch(pair[0].fileno())
    loop.turn(0)


def test_descriptor_that_cannot_be_watched_leaves_nothing_behind(loop):
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.close(write_end)
    with pytest.raises((OSError, KeyError, ValueError)):
        loop.watch_readable(read_end, lambda: None)
    assert not loop.is_watched(read_end)


def test_timers_run_in_order_of_time_and_then_of_setting(loop):
    calls = []
    now = time.monotonic()
    for name, delay in (("c", 0.02), ("a", 0.0), ("b", 0.0)):
        loop.call_at(now + delay, lambda name=name: calls.append(name))
    while len(calls) < 3:
        loop.turn(1)
    assert calls == ["a", "b", "c"]
    assert time.monotonic() >= now + 0.02


def test_poll_waits_no_longer_than_the_next_timer(loop):
    started = time.monotonic()
    fired = []
    loop.call_later(0.03, lambda: fired.append(time.monotonic()))
    while not fired:
        loop.turn(60)
    assert 0.03 <= fired[0] - started < 30


def test_cancelled_timer_never_runs_and_may_be_cancelled_again(loop):
    calls = []
    timer = loop.call_later(0, lambda: calls.append(1))
    assert timer.pending
    timer.cancel()
    timer.cancel()
    assert not timer.pending
    loop.turn(0.01)
    assert calls == []


def test_timer_cancelled_after_it_ran_changes_nothing(loop):
    timer = loop.call_later(0, lambda: None)
    loop.turn(1)
    assert not timer.pending
    timer.cancel()
    calls = []
    loop.call_later(0, lambda: calls.append(1))
    loop.turn(1)
    assert calls == [1]


def test_timer_cancelled_by_another_of_the_same_turn_does_not_run(loop):
    calls = []
    now = time.monotonic()
    loop.call_at(now, lambda: second.cancel())
    second = loop.call_at(now, lambda: calls.append(1))
    loop.turn(1)
    loop.turn(0)
    assert calls == []


def test_cancelled_timers_do_not_pile_up(loop):
    keep = [loop.call_later(3600, lambda: None) for _ in range(10)]
    for _ in range(100 * COMPACT_ABOVE):
        loop.call_later(3600, lambda: None).cancel()
    assert len(loop._timers) <= 2 * COMPACT_ABOVE + len(keep)
    assert all(timer.pending for timer in keep)


def test_timer_that_sets_itself_again_does_not_hold_the_turn_or_the_others(loop):
    calls = []

    def again() -> None:
        calls.append("again")
        loop.call_at(0.0, again)

    loop.call_at(0.0, again)
    loop.call_later(0, lambda: calls.append("other"))
    loop.turn(1)
    loop.turn(1)
    assert calls.count("again") == 2
    assert "other" in calls


def test_exception_of_a_callback_leaves_run_and_loses_nothing(loop, pair):
    ours, theirs = pair
    calls = []

    def read() -> None:
        calls.append(ours.recv(10))
        loop.stop()

    def fail() -> None:
        raise ZeroDivisionError

    loop.call_later(0, fail)
    loop.call_later(0, lambda: calls.append(b"timer"))
    loop.watch_readable(ours.fileno(), read)
    with pytest.raises(ZeroDivisionError):
        loop.run()
    theirs.send(b"x")
    loop.run()
    assert sorted(calls) == [b"timer", b"x"]


def test_stop_ends_run_after_the_turn(loop):
    loop.call_later(0, loop.stop)
    loop.run()
    assert loop.turns >= 1


def test_busy_counts_the_work_and_not_the_waiting(loop):
    def work() -> None:
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass

    loop.call_later(0.05, work)
    while loop.busy < 0.02:
        loop.turn(1)
    assert loop.busy < 0.05

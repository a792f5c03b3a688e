"""Signals of this very process, sent with os.kill."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator

import pytest

from asgiri.master.signals import SignalSource

SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)


@pytest.fixture
def source() -> Iterator[SignalSource]:
    source = SignalSource(SIGNALS)
    yield source
    source.close()


def wait_readable(source: SignalSource, timeout: float = 5.0) -> bool:
    return bool(select.select([source.fileno()], [], [], timeout)[0])


def test_signals_arrive_in_order(source):
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    assert wait_readable(source)
    assert source.take() == [signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1]


def test_nothing_came_means_an_empty_list(source):
    assert not wait_readable(source, 0)
    assert source.take() == []


def test_a_storm_does_not_hide_the_last_signal(source):
    for _ in range(5000):
        os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    taken = []
    while more := source.take():
        taken += more
    assert taken[-1] is signal.SIGTERM
    assert len(taken) == 5001


def test_signals_of_others_are_not_reported(source):
    previous = signal.signal(signal.SIGUSR2, lambda number, frame: None)
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert wait_readable(source)
        assert source.take() == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_close_puts_handlers_and_wakeup_descriptor_back_and_may_be_repeated():
    before = [signal.getsignal(number) for number in SIGNALS]
    wakeup_fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup_fd)
    descriptors = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    source = SignalSource(SIGNALS)
    source.close()
    source.close()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(wakeup_fd) == wakeup_fd
    if descriptors:
        assert set(os.listdir("/proc/self/fd")) == descriptors


def test_descriptors_are_not_inherited(source):
    assert not os.get_inheritable(source.fileno())

"""Counters: what one end adds the other takes, once, and neither ever waits."""

from __future__ import annotations

import errno
import os
import select

import pytest

from asgiri.ipc.counter import EventCounter
from tests.support.memory import no_fd_leaks

pytestmark = pytest.mark.linux


@pytest.fixture
def counter():
    created = EventCounter.create()
    yield created
    created.close()


def readable(counter: EventCounter) -> bool:
    return bool(select.select([counter], [], [], 0)[0])


def test_counts_add_up_until_they_are_taken(counter):
    assert counter.take() == 0
    counter.add(5)
    counter.add(1 << 40)
    assert counter.take() == 5 + (1 << 40)
    assert counter.take() == 0


def test_it_wakes_its_reader_while_there_is_a_count(counter):
    assert not readable(counter)
    counter.add(1)
    assert readable(counter)
    counter.take()
    assert not readable(counter)


def test_two_ends_share_one_count(counter):
    other = EventCounter(os.dup(counter.fileno()))
    counter.add(7)
    assert other.take() == 7
    assert counter.take() == 0
    other.close()


def test_a_count_that_does_not_fit_is_noted_and_nobody_waits(counter):
    counter.add((1 << 64) - 2)
    counter.add(1)
    assert counter.saturated == 1
    assert counter.take() == (1 << 64) - 2


def test_its_descriptor_is_not_inherited_and_is_closed_once():
    with no_fd_leaks():
        counter = EventCounter.create()
        assert not os.get_inheritable(counter.fd)
        counter.close()
        counter.close()
        assert counter.fileno() == -1


def test_a_system_without_eventfd_says_so(monkeypatch):
    monkeypatch.delattr(os, "eventfd")
    with pytest.raises(OSError) as caught:
        EventCounter.create()
    assert caught.value.errno == errno.ENOSYS

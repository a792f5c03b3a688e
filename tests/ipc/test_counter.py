"""Counters: what one end adds the other takes, once, and neither ever waits."""

from __future__ import annotations

import os
import select

import pytest

from asgiri.ipc.counter import PipeCounter
from tests.support.memory import no_fd_leaks


@pytest.fixture
def counter():
    created = PipeCounter.create()
    yield created
    created.close()


def readable(counter: PipeCounter) -> bool:
    return bool(select.select([counter], [], [], 0)[0])


def writable(counter: PipeCounter) -> bool:
    return bool(select.select([], [counter.writing], [], 0)[1])


def fill(counter: PipeCounter) -> int:
    """Add until one is owed; return the sum."""
    added = 0
    while not counter.owed:
        counter.add(7)
        added += 7
    return added


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


def test_what_a_full_pipe_does_not_take_goes_with_the_next(counter):
    added = fill(counter)
    assert not writable(counter)
    counter.add(0)
    assert counter.owed == 7
    taken = counter.take()
    assert taken == added - 7
    assert writable(counter)
    counter.add(3)
    assert (counter.owed, counter.take()) == (0, 10)


def test_the_other_process_can_neither_make_it_wait_nor_see_its_flags(counter):
    """Two descriptions: O_NONBLOCK of the one is not that of the other."""
    os.set_blocking(counter.reading, True)
    fill(counter)
    os.set_blocking(counter.reading, False)
    counter.take()
    os.set_blocking(counter.writing, True)
    assert counter.take() == 0


def test_rubbish_in_the_pipe_is_a_number_like_any_other(counter):
    os.write(counter.writing, b"\1\2\3")
    os.write(counter.writing, b"\xff" * 10_000)
    assert counter.take() > 0
    assert counter.take() == 0


def test_no_take_reads_more_than_a_pipe_holds(counter):
    """Whoever writes all the time must not keep the reader in it."""
    fcntl = pytest.importorskip("fcntl")
    if not hasattr(fcntl, "F_SETPIPE_SZ"):
        pytest.skip("pipes have one size here")
    fcntl.fcntl(counter.writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    added = fill(counter) - counter.owed
    assert counter.take() == 65536 // 8 * 7
    assert added > 65536 // 8 * 7


def test_its_reader_sees_that_nobody_is_left_to_add(counter):
    counter.add(9)
    counter.close_writing()
    assert counter.fileno() == counter.reading
    assert (counter.take(), counter.ended) == (9, False)
    assert (counter.take(), counter.ended) == (0, True)


def test_adding_what_nobody_reads_any_more_does_nothing(counter):
    counter.close_reading()
    assert counter.fileno() == counter.writing
    counter.add(1)
    assert counter.owed == 0


def test_its_descriptors_are_not_inherited_and_are_closed_once():
    with no_fd_leaks():
        counter = PipeCounter.create()
        assert not os.get_inheritable(counter.reading)
        assert not os.get_inheritable(counter.writing)
        counter.close()
        counter.close()
        assert counter.fileno() == -1

"""The recorders record, and the leak check sees a leak."""

from __future__ import annotations

import os

import pytest

from tests.support.memory import Log, RecordingBuffer, RecordingCounter, no_fd_leaks


def test_stores_loads_and_counts_are_logged_in_order():
    log: Log = []
    buffer, counter = RecordingBuffer(8, log), RecordingCounter("published", log)
    buffer[6:] = b"ab"
    buffer[:2] = b"cd"
    counter.add(4)
    assert (buffer[6:], counter.take(), counter.take()) == (b"ab", 4, 0)
    assert bytes(buffer.content) == b"cd\0\0\0\0ab"
    assert log == [("store", 6, 8), ("store", 0, 2), ("published", 4, 0), ("load", 6, 8)]


def test_a_store_of_the_wrong_size_is_an_error():
    with pytest.raises(ValueError, match="store of 3 bytes into 2"):
        RecordingBuffer(8, [])[0:2] = b"abc"


def test_a_leaked_descriptor_is_seen():
    read, write = os.pipe()
    with pytest.raises(AssertionError), no_fd_leaks():
        leaked = os.dup(write)
    for fd in (read, write, leaked):
        os.close(fd)
    with no_fd_leaks():
        pass

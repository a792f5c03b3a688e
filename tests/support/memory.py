"""Stand-ins for shared memory and counters that write down what was done to them, in order.

One `Log` is shared by a buffer and its counters, so that a test can see that a store came before
the count that publishes it. `open_fds` is how a test proves that nothing leaked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Log = list[tuple[str, int, int]]


class RecordingBuffer:
    """A buffer of `size` bytes; its log entries are ("store" or "load", start, stop)."""

    def __init__(self, size: int, log: Log) -> None:
        self.content = bytearray(size)
        self.log = log

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, index: slice, /) -> bytes:
        start, stop, _ = index.indices(len(self.content))
        self.log.append(("load", start, stop))
        return bytes(self.content[start:stop])

    def __setitem__(self, index: slice, value: bytes, /) -> None:
        start, stop, _ = index.indices(len(self.content))
        if stop - start != len(value):
            raise ValueError(f"store of {len(value)} bytes into {stop - start}")
        self.log.append(("store", start, stop))
        self.content[start:stop] = value


class RecordingCounter:
    """Both ends of a counter; its log entries are (name, count, 0)."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self.log = log
        self.count = 0
        self.owed = 0
        self.ended = False
        self.closed = False

    def fileno(self) -> int:
        return 1000 + len(self.name)

    def add(self, count: int) -> None:
        self.log.append((self.name, count, 0))
        self.count += count

    def take(self) -> int:
        count, self.count = self.count, 0
        return count

    def close(self) -> None:
        self.closed = True


def open_fds() -> set[int]:
    """The descriptors of this process."""
    directory = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    fds = {int(name) for name in os.listdir(directory)}
    return {fd for fd in fds if _is_open(fd)}  # listing opens one itself


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@contextmanager
def no_fd_leaks() -> Iterator[None]:
    """Fail when the block leaves another set of descriptors than it found."""
    before = open_fds()
    yield
    assert open_fds() == before

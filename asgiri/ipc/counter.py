"""An eventfd that carries byte counts from one process to another and wakes the one that reads.

eventfd_write and eventfd_read take the same kernel lock: release by the one, acquire by the other.
What was stored before `add` is seen after the `take` that returns it, on every architecture, and
Python needs no fence. Nothing here blocks: the descriptor is non-blocking from birth.
"""

import errno
import os
from typing import Self

__all__ = ["EventCounter"]


class EventCounter:
    """A process's hold on a counter; owns its descriptor. One process adds, the other takes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.saturated = 0
        """Counts that did not fit: a process has written nonsense, and only its ring suffers."""

    @classmethod
    def create(cls) -> Self:
        """Create a counter at 0. Raises OSError where eventfd is missing (ENOSYS) or refused."""
        if not hasattr(os, "eventfd"):
            raise OSError(errno.ENOSYS, "eventfd: " + os.strerror(errno.ENOSYS))
        return cls(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def fileno(self) -> int:
        """Return the descriptor: readable while the count is not 0."""
        return self.fd

    def add(self, count: int) -> None:
        """Add to the count and wake the reader."""
        try:
            os.eventfd_write(self.fd, count)
        except BlockingIOError:
            self.saturated += 1

    def take(self) -> int:
        """Return the count and set it to 0."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

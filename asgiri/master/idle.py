"""Connections that workers handed back because nothing is under way on them (D22). Master only.

The master watches them without reading: the first byte of a next request makes one readable, and
it is dispatched like a new one. Until then it costs a descriptor and an entry here, and no worker
that is busy with something else stands in its way.
"""

from __future__ import annotations

import math
import os
import select
from collections.abc import Callable
from typing import Final, NamedTuple

from asgiri.master.loop import EventLoop, Timer

DEFAULT_LIMIT: Final = 16384
"""Idle connections in the master. Each is a descriptor, of which it may usually have 2^19; what
comes beyond goes back to a worker at once."""
SWEEP_INTERVAL: Final = 0.25
"""Seconds at least between two looks for connections that are due: 40 ns for each in the pool."""


class Connection(NamedTuple):
    """An accepted connection that is the master's."""

    listener: int
    fd: int
    client_ip: str


class _Idle(NamedTuple):
    connection: Connection
    deadline: float


class IdlePool:
    """Owns the descriptors in it."""

    def __init__(
        self,
        loop: EventLoop,
        awake: Callable[[Connection], None],
        *,
        keep_alive: float,
        limit: int = DEFAULT_LIMIT,
    ) -> None:
        """`awake` is called with a connection that has something to read, and owns it then."""
        self._loop = loop
        self._awake = awake
        self.keep_alive = keep_alive
        self._limit = limit
        self._idle: dict[int, _Idle] = {}
        self._timer: Timer | None = None
        self._next_due = math.inf
        self.expired = 0
        """Connections closed because no request came in time."""
        self.refused = 0
        """Connections that found the pool full."""

    def __len__(self) -> int:
        return len(self._idle)

    def add(self, connection: Connection, idle_share: float = 0.0) -> bool:
        """Take a connection; False when there is no room, and it stays the caller's.

        `idle_share`: how much of its time was over when it came, 0 to 1.
        """
        if len(self._idle) >= self._limit:
            self.refused += 1
            return False
        fd = connection.fd
        deadline = self._loop.now + self.keep_alive * (1.0 - idle_share)
        self._idle[fd] = _Idle(connection, deadline)
        self._loop.watch_readable(fd, _Wake(self, fd))
        if deadline < self._next_due:
            self._set_clock(deadline)
        return True

    def connections(self) -> list[Connection]:
        """Return what is in it; it stays there."""
        return [idle.connection for idle in self._idle.values()]

    def wake(self, fd: int) -> None:
        """Something has come on a connection, or its end. Called when it is readable."""
        self._loop.unwatch(fd)
        self._awake(self._idle.pop(fd).connection)

    def close(self) -> None:
        """Close what is idle; what has something to read at this moment is passed on instead."""
        if self._timer is not None:
            self._timer.cancel()
        self._close(list(self._idle))

    def _set_clock(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_due = due
        self._timer = self._loop.call_at(due, self._expire)

    def _expire(self) -> None:
        now = self._loop.now
        due = [fd for fd, idle in self._idle.items() if idle.deadline <= now]
        self.expired += self._close(due)
        self._next_due = math.inf
        if self._idle:
            first = min(idle.deadline for idle in self._idle.values())
            self._set_clock(max(first, now + SWEEP_INTERVAL))

    def _close(self, fds: list[int]) -> int:
        # A request may have come since the loop last looked; it would be lost.
        asking = readable(fds)
        for fd in fds:
            if fd in asking:
                self.wake(fd)
            else:
                self._loop.unwatch(fd)
                del self._idle[fd]
                os.close(fd)
        return len(fds) - len(asking)


class _Wake:
    """The callback of one connection."""

    __slots__ = ("_fd", "_pool")

    def __init__(self, pool: IdlePool, fd: int) -> None:
        self._pool = pool
        self._fd = fd

    def __call__(self) -> None:
        self._pool.wake(self._fd)


def readable(fds: list[int]) -> set[int]:
    """Return those on which something has come, or their end."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(0)} if fds else set()

"""One coarse timer for the deadlines of all connections of a worker.

A connection re-arms its deadline with every request; a timer of the event loop for each costs 1.5
us to set and as much to cancel (uvloop 0.23), an attribute 20 ns. So connections keep a number, and
a sweep every PERIOD looks at all of them: 30 ns each, 1.2 ms of a second with 10,000 connections.
Timeouts are seconds; nobody misses a quarter of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

PERIOD: Final = 0.25
NEVER: Final = inf


class HasDeadline(Protocol):
    """A connection, or whatever else waits for something."""

    deadline: float
    """When to call `deadline_reached`; NEVER while there is nothing to wait for."""

    def deadline_reached(self, now: float) -> None:
        """The deadline has passed. Set the next one, or it is called again by the next sweep."""


class Deadlines:
    """Members are swept until they are discarded."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, now: Callable[[], float], *, period: float = PERIOD
    ) -> None:
        self._loop = loop
        self._now = now
        self._period = period
        self._members: set[HasDeadline] = set()
        self._timer = loop.call_later(period, self._sweep)

    def add(self, member: HasDeadline) -> None:
        self._members.add(member)

    def discard(self, member: HasDeadline) -> None:
        self._members.discard(member)

    def close(self) -> None:
        """Sweep no more."""
        self._timer.cancel()
        self._members.clear()

    def _sweep(self) -> None:
        now = self._now()
        self._timer = self._loop.call_later(self._period, self._sweep)
        # Two steps: whoever is reached may leave, and take others along.
        for member in [member for member in self._members if member.deadline <= now]:
            member.deadline_reached(now)

"""How many requests of a worker run at once, how long others wait for their turn, and how long one
may take.

Most of what waits for a worker below its limit waits in the master, which gives it to the first
one that comes free. What comes on a connection that cannot move (TLS, HTTP/2, HTTP/3) waits here.

No timer per request: everybody waits equally long and may take equally long, so the oldest is due
first, and the sweep of all deadlines (see `transport.deadlines`) asks for that one.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

from asgiri.ipc.scoreboard import Refusal

WAITING_LIMIT: Final = 1024
"""Requests that wait for their turn. Each holds its head and up to a window of its body; who finds
as many before it would hardly be served in time."""


class LimitedRequest(Protocol):
    """A request whose application has not been called yet, or runs."""

    def begin(self) -> None:
        """Call the application."""

    def refuse(self) -> None:
        """Answer 503 instead."""

    def timed_out(self) -> None:
        """Answer 504 if nothing was answered yet, and cancel the application's call."""


class RequestLimits:
    """One per worker, only made when there is a limit. A member of the sweep of deadlines."""

    def __init__(
        self,
        *,
        concurrency: int,
        queue_timeout: float,
        request_timeout: float,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
        now: Callable[[], float],
        refused: Callable[[Refusal], None],
        waiting_limit: int = WAITING_LIMIT,
    ) -> None:
        """0 is no limit for each of the first three. `context`: where requests begin that had to
        wait; the context of whoever makes room belongs to another request.
        """
        self._concurrency = concurrency or inf
        self._queue_timeout = queue_timeout or inf
        self._request_timeout = request_timeout or inf
        self._loop = loop
        self._context = context
        self._now = now
        self._refused = refused
        self._waiting_limit = waiting_limit
        self._running = 0
        self._due: dict[LimitedRequest, float] = {}
        """When those that run have taken too long; empty without a limit."""
        self._waiting: dict[LimitedRequest, float] = {}
        """Until when they wait."""
        self.deadline = inf

    def enter(self, request: LimitedRequest) -> None:
        """Begin a request, let it wait, or refuse it."""
        if self._running < self._concurrency:
            self._running += 1
            self._begin(request)
        elif len(self._waiting) < self._waiting_limit:
            self._waiting[request] = self._watch(self._queue_timeout)
        else:
            self._refused(Refusal.CONCURRENCY_LIMIT)
            request.refuse()

    def withdraw(self, request: LimitedRequest) -> bool:
        """Its peer is gone; True when it was waiting, and will not be begun."""
        return self._waiting.pop(request, None) is not None

    def left(self, request: LimitedRequest) -> None:
        """The application's call returned: the next one may begin."""
        self._due.pop(request, None)
        self._running -= 1
        if self._waiting and self._running < self._concurrency:
            following = next(iter(self._waiting))
            del self._waiting[following]
            self._running += 1
            # Not here: each might end at once and begin the next one inside of itself.
            self._loop.call_soon(self._begin, following, context=self._context)

    def _begin(self, request: LimitedRequest) -> None:
        if self._request_timeout != inf:
            self._due[request] = self._watch(self._request_timeout)
        request.begin()

    def _watch(self, timeout: float) -> float:
        due = self._now() + timeout
        self.deadline = min(self.deadline, due)
        return due

    def deadline_reached(self, now: float) -> None:
        """Called by the sweep: somebody has waited, or taken, too long."""
        for request in _take_due(self._waiting, now):
            self._refused(Refusal.CONCURRENCY_LIMIT)
            request.refuse()
        for request in _take_due(self._due, now):
            self._refused(Refusal.REQUEST_TIMEOUT)
            request.timed_out()
        self.deadline = min(
            next(iter(self._waiting.values()), inf), next(iter(self._due.values()), inf)
        )


def _take_due(requests: dict[LimitedRequest, float], now: float) -> list[LimitedRequest]:
    taken = []
    for request, due in requests.items():
        if due > now:
            break
        taken.append(request)
    for request in taken:
        del requests[request]
    return taken

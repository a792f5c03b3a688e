"""The master's event loop: descriptors that become ready, timers that fall due, nothing else.

Not asyncio: the master needs no futures and no tasks, and a wake for one datagram costs 2.6 us
here against 7.7 us there. Level-triggered throughout, so a callback may do a bounded part of its
work and return: the rest wakes it again.
"""

from __future__ import annotations

import heapq
import itertools
import select
import selectors
import time
from collections.abc import Callable
from typing import Final, Protocol

Callback = Callable[[], None]

READABLE: Final = 1
WRITABLE: Final = 4
COMPACT_ABOVE: Final = 64
"""Cancelled timers that may lie in the heap before it is rebuilt, unless most are still wanted."""


class Poller(Protocol):
    """What the loop needs from the system: ready descriptors as (fd, READABLE | WRITABLE)."""

    def register(self, fd: int, interest: int) -> None:
        """Start to watch `fd`."""

    def modify(self, fd: int, interest: int) -> None:
        """Watch `fd` for something else."""

    def unregister(self, fd: int) -> None:
        """Stop to watch `fd`."""

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait until something is ready, or for `timeout` seconds."""

    def close(self) -> None:
        """Give the poller's own descriptor back."""


class _EpollPoller:
    """epoll(7).

    An error or hang-up counts as readable and writable: the call that follows tells.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._poll = self._epoll.poll

    def register(self, fd: int, interest: int) -> None:
        self._epoll.register(fd, interest)

    def modify(self, fd: int, interest: int) -> None:
        self._epoll.modify(fd, interest)

    def unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        return self._poll(timeout)

    def close(self) -> None:
        self._epoll.close()


class _SelectorPoller:
    """What the platform has instead of epoll: kqueue on macOS."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, interest: int) -> None:
        self._selector.register(fd, _selector_events(interest))

    def modify(self, fd: int, interest: int) -> None:
        self._selector.modify(fd, _selector_events(interest))

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        return [
            (
                key.fd,
                (READABLE if events & selectors.EVENT_READ else 0)
                | (WRITABLE if events & selectors.EVENT_WRITE else 0),
            )
            for key, events in self._selector.select(timeout)
        ]

    def close(self) -> None:
        self._selector.close()


def _selector_events(interest: int) -> int:
    return (selectors.EVENT_READ if interest & READABLE else 0) | (
        selectors.EVENT_WRITE if interest & WRITABLE else 0
    )


def default_poller() -> Poller:
    """Choose epoll where the system has it."""
    return _EpollPoller() if hasattr(select, "epoll") else _SelectorPoller()


class Timer:
    """One call in the future; `cancel` may be called at any time, also after it ran."""

    __slots__ = ("_loop", "callback", "when")

    def __init__(self, loop: EventLoop, when: float, callback: Callback) -> None:
        self._loop: EventLoop | None = loop
        self.when = when
        self.callback = callback

    @property
    def pending(self) -> bool:
        """True until it ran or was cancelled."""
        return self._loop is not None

    def cancel(self) -> None:
        """Never call back; nothing happens when it is too late."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.timer_cancelled()

    def take(self) -> bool:
        """Mark it as run (the loop calls this); False when it was cancelled before."""
        if self._loop is None:
            return False
        self._loop = None
        return True


class EventLoop:
    """Watch descriptors and timers, call back.

    An exception of a callback leaves `run`; call it again to go on.

    A descriptor must be unwatched before it is closed: a duplicate of it may live on in a worker,
    and epoll would go on to report it under a number that means something else by then. A
    callback may close another descriptor that was ready in the same turn; if its number is taken
    again at once, the new one's callback runs early. So every callback has to stand being called
    with nothing to do.
    """

    def __init__(self, poller: Poller | None = None) -> None:
        self._poller: Poller = default_poller() if poller is None else poller
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_numbers = itertools.count()
        self._cancelled = 0
        self._running = False
        self.now = time.monotonic()
        """When the current turn woke up: good enough for deadlines, saves a clock call per
        event."""
        self.busy = 0.0
        """Seconds spent outside of poll: against the wall clock it is the master's utilisation."""
        self.turns = 0

    # Descriptors

    def watch_readable(self, fd: int, callback: Callback) -> None:
        """Call back in every turn in which `fd` is readable; replaces an earlier callback."""
        self._change(fd, self._readers, callback)

    def watch_writable(self, fd: int, callback: Callback) -> None:
        """Call back in every turn in which `fd` is writable; replaces an earlier callback."""
        self._change(fd, self._writers, callback)

    def unwatch_readable(self, fd: int) -> None:
        """Forget the callback; nothing happens when there is none."""
        self._change(fd, self._readers, None)

    def unwatch_writable(self, fd: int) -> None:
        """Forget the callback; nothing happens when there is none."""
        self._change(fd, self._writers, None)

    def unwatch(self, fd: int) -> None:
        """Forget both callbacks. Due before the descriptor is closed."""
        self._change(fd, self._readers, None)
        self._change(fd, self._writers, None)

    def is_watched(self, fd: int) -> bool:
        """Tell whether any callback waits for `fd`."""
        return fd in self._readers or fd in self._writers

    def _change(self, fd: int, table: dict[int, Callback], callback: Callback | None) -> None:
        before = self._interest(fd)
        if callback is None:
            table.pop(fd, None)
        else:
            table[fd] = callback
        after = self._interest(fd)
        if before == after:
            return
        if not before:
            try:
                self._poller.register(fd, after)
            except BaseException:
                table.pop(fd, None)
                raise
        elif after:
            self._poller.modify(fd, after)
        else:
            self._poller.unregister(fd)

    def _interest(self, fd: int) -> int:
        return (READABLE if fd in self._readers else 0) | (WRITABLE if fd in self._writers else 0)

    # Timers

    def call_at(self, when: float, callback: Callback) -> Timer:
        """Call back once, in the first turn that begins at or after `when` (monotonic)."""
        # Nothing is due before the current turn: a timer that sets itself into the past would go
        # first for ever.
        when = max(when, self.now)
        timer = Timer(self, when, callback)
        heapq.heappush(self._timers, (when, next(self._timer_numbers), timer))
        return timer

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Call back once, `delay` seconds from now."""
        return self.call_at(time.monotonic() + delay, callback)

    def timer_cancelled(self) -> None:
        """Count a timer that stays in the heap for nothing; rebuild it when these are the most."""
        self._cancelled += 1
        if self._cancelled > COMPACT_ABOVE and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].pending]
            heapq.heapify(self._timers)
            self._cancelled = 0

    # Running

    def run(self) -> None:
        """Turn until `stop`."""
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        """Let `run` return after the current turn."""
        self._running = False

    def turn(self, limit: float | None = None) -> None:
        """Wait for at most `limit` seconds, then call whatever is ready and due."""
        events = self._poller.poll(self._timeout(limit))
        self.now = started = time.monotonic()
        self.turns += 1
        readers, writers = self._readers, self._writers
        try:
            for fd, ready in events:
                # Looked up one by one: a callback of this turn may have unwatched what is ready.
                if ready != WRITABLE and (callback := readers.get(fd)) is not None:
                    callback()
                if ready != READABLE and (callback := writers.get(fd)) is not None:
                    callback()
            if self._timers:
                self._run_timers()
        finally:
            self.busy += time.monotonic() - started

    def _timeout(self, limit: float | None) -> float | None:
        if not self._timers:
            return limit
        timeout = max(0.0, self._timers[0][0] - time.monotonic())
        return timeout if limit is None else min(timeout, limit)

    def _run_timers(self) -> None:
        # What these callbacks set has a higher number and waits for the next turn, so a turn ends.
        now, last = self.now, next(self._timer_numbers)
        while self._timers and self._timers[0][0] <= now and self._timers[0][1] < last:
            timer = heapq.heappop(self._timers)[2]
            if timer.take():
                timer.callback()
            else:
                self._cancelled -= 1

    def close(self) -> None:
        """Give the poller's descriptor back and forget everything."""
        self._readers.clear()
        self._writers.clear()
        self._timers.clear()
        self._poller.close()

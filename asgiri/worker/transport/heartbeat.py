"""What the event loop itself says to the master: that it turns, how late it is, and what it has
counted.

A thread would go on while the loop is blocked, which is what the master wants to know (D15).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from asgiri import logs
from asgiri.ipc.scoreboard import Cell, Scoreboard
from asgiri.worker.asgi.request import RequestEnvironment

INTERVAL: Final = 0.05
"""Fixed: a longer one while idle would make idle workers look blocked. Costs 0.1 % of a processor.
"""
MEMORY_INTERVAL: Final = 5.0
"""How often the resident size is read: 15 us each."""
LAG_WEIGHT: Final = 0.2
"""Of the newest sample in the average: it follows a change within ten beats, half a second."""


class Heartbeat:
    """Beats from its creation until `close`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scoreboard: Scoreboard,
        requests: RequestEnvironment,
        *,
        orphaned: Callable[[], bool],
        on_orphaned: Callable[[], None],
        each_beat: Callable[[], None],
    ) -> None:
        """`orphaned` says that the master is dead; then `on_orphaned` is called, once."""
        self._loop = loop
        self._scoreboard = scoreboard
        self._requests = requests
        self._orphaned = orphaned
        self._on_orphaned: Callable[[], None] | None = on_orphaned
        self._each_beat = each_beat
        self._count = 0
        self._lag = 0.0
        self._lag_max = 0.0
        self._second = 0
        self._memory_due = 0.0
        self._due = loop.time()
        self._timer: asyncio.TimerHandle
        self._beat()

    def close(self) -> None:
        """Beat no more; what was counted is published a last time."""
        self._timer.cancel()
        self._requests.counters.publish()

    def _beat(self) -> None:
        # Not loop.time(): it stands still while the loop's turn lasts.
        now_ns = time.monotonic_ns()
        now = now_ns / 1e9
        self._count += 1
        lag = max(0.0, now - self._due)
        self._lag += LAG_WEIGHT * (lag - self._lag)
        self._lag_max = max(self._lag_max, lag)
        put = self._scoreboard.set
        put(Cell.LAG_EWMA_US, int(self._lag * 1e6))
        put(Cell.LAG_MAX_US, int(self._lag_max * 1e6))
        put(Cell.BEAT_COUNT, self._count)
        put(Cell.BEAT_NS, now_ns)
        put(Cell.LOG_LINES_DROPPED, logs.lines_dropped())
        self._requests.counters.publish()
        self._each_beat()
        self._renew_date()
        if now >= self._memory_due:
            self._memory_due = now + MEMORY_INTERVAL
            put(Cell.RSS_BYTES, resident_size())
        if self._on_orphaned is not None and self._orphaned():
            self._on_orphaned()
            self._on_orphaned = None
        self._due = max(self._due + INTERVAL, now)
        self._timer = self._loop.call_at(self._due, self._beat)

    def _renew_date(self) -> None:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._requests.defaults.set_date(second)


def resident_size() -> int:
    """Bytes of memory of this process; 0 where the system does not tell (macOS: psutil does)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0

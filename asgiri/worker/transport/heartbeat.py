"""What the event loop itself says to the master: that it turns, how late it is, and what it has
counted.

A thread would go on while the loop is blocked, which is what the master wants to know (D15). With
an application in a thread of its own it is that thread's loop which the master wants to know about:
then it has the `Pulse` that the master goes by, and the main loop one that only operators look at.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
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
STILL: Final = 1.0
"""Seconds without a beat of the main loop after which the application's loop does not speak for the
worker any more."""


@dataclass(frozen=True, slots=True)
class PulseCells:
    """Where a pulse is written."""

    beat_ns: Cell
    beat_count: Cell
    lag_ewma_us: Cell
    lag_max_us: Cell


WORKER_CELLS: Final = PulseCells(Cell.BEAT_NS, Cell.BEAT_COUNT, Cell.LAG_EWMA_US, Cell.LAG_MAX_US)
MAIN_CELLS: Final = PulseCells(
    Cell.MAIN_BEAT_NS, Cell.MAIN_BEAT_COUNT, Cell.MAIN_LAG_EWMA_US, Cell.MAIN_LAG_MAX_US
)


class Pulse:
    """Beats on one event loop from its creation, in that loop's thread, until `close`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scoreboard: Scoreboard,
        cells: PulseCells = WORKER_CELLS,
        *,
        each_beat: Callable[[float], None] | None = None,
        counts: Callable[[float], bool] | None = None,
    ) -> None:
        """Both are called with each beat's time; a beat that does not count is not written."""
        self._loop = loop
        self._scoreboard = scoreboard
        self._cells = cells
        self._each_beat = each_beat
        self._counts = counts
        self._count = 0
        self._lag = 0.0
        self._lag_max = 0.0
        self._due = loop.time()
        self._timer: asyncio.TimerHandle
        self._beat()

    def close(self) -> None:
        """Beat no more."""
        self._timer.cancel()

    def _beat(self) -> None:
        # Not loop.time(): it stands still while the loop's turn lasts.
        now_ns = time.monotonic_ns()
        now = now_ns / 1e9
        lag = max(0.0, now - self._due)
        self._lag += LAG_WEIGHT * (lag - self._lag)
        self._lag_max = max(self._lag_max, lag)
        if self._counts is None or self._counts(now):
            self._write(now_ns)
        if self._each_beat is not None:
            self._each_beat(now)
        self._due = max(self._due + INTERVAL, now)
        self._timer = self._loop.call_at(self._due, self._beat)

    def _write(self, now_ns: int) -> None:
        self._count += 1
        put, cells = self._scoreboard.set, self._cells
        put(cells.lag_ewma_us, int(self._lag * 1e6))
        put(cells.lag_max_us, int(self._lag_max * 1e6))
        put(cells.beat_count, self._count)
        put(cells.beat_ns, now_ns)


class Heartbeat:
    """What the main loop does with each beat, from its creation until `close`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scoreboard: Scoreboard,
        requests: RequestEnvironment,
        *,
        orphaned: Callable[[], bool],
        on_orphaned: Callable[[], None],
        each_beat: Callable[[], None],
        cells: PulseCells = WORKER_CELLS,
    ) -> None:
        """`orphaned` says that the master is dead; then `on_orphaned` is called, once."""
        self._scoreboard = scoreboard
        self._requests = requests
        self._orphaned = orphaned
        self._on_orphaned: Callable[[], None] | None = on_orphaned
        self._each_beat = each_beat
        self._second = 0
        self._memory_due = 0.0
        self._pulse = Pulse(loop, scoreboard, cells, each_beat=self._beat)

    def close(self) -> None:
        """Beat no more; what was counted is published a last time."""
        self._pulse.close()
        self._requests.counters.publish()

    def _beat(self, now: float) -> None:
        self._scoreboard.set(Cell.LOG_LINES_DROPPED, logs.lines_dropped())
        self._scoreboard.set(Cell.ACCESS_LINES_LEFT_OUT, logs.lines_left_out())
        self._requests.counters.publish()
        self._each_beat()
        self._renew_date()
        if now >= self._memory_due:
            self._memory_due = now + MEMORY_INTERVAL
            self._scoreboard.set(Cell.RSS_BYTES, resident_size())
        if self._on_orphaned is not None and self._orphaned():
            self._on_orphaned()
            self._on_orphaned = None

    def _renew_date(self) -> None:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._requests.defaults.set_date(second)


def application_pulse(loop: asyncio.AbstractEventLoop, scoreboard: Scoreboard) -> Pulse:
    """Beat for the worker on the application's loop, as long as the main loop beats as well."""

    def main_beats(now: float) -> bool:
        return now - scoreboard.get(Cell.MAIN_BEAT_NS) / 1e9 < STILL

    return Pulse(loop, scoreboard, counts=main_beats)


def resident_size() -> int:
    """Bytes of memory of this process; 0 where the system does not tell (macOS: psutil does)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0

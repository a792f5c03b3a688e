"""Answers that clients do not take: how much of them a worker keeps, all connections together.

Each stream is held back at its own mark (`FlowConfig.high_water`), but neither streams nor
connections are few, and what an application has handed over is in memory. Above the limit those
are broken off that have taken nothing for longest: a client that is merely slow takes something
now and then. Nobody is asked to wait instead: that would hit who comes next, not who takes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

PATIENCES: Final = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.0)
"""Seconds without progress, tried one after the other until enough is free."""
RELIEF: Final = 0.75
"""Part of the limit that is left by a relief, so that not each stream brings about the next."""
PAUSE: Final = 1.0
"""Seconds until it is tried again when too much of what is kept seems to be on its way."""
SETTLE_TURNS: Final = 3
"""Turns of the loop until the application's calls have ended, with all that they hold."""
REQUESTS_BEGUN: Final = 100
"""Requests that begin before those get a few turns of the loop: as many as a connection may have at
once. Many connections are read in one turn, and their calls all run in the next."""
STREAM_COST: Final = 16384
"""Bytes counted for a stream that waits, beside those of its answer: the application's call and
what belongs to it. 12 KiB were measured with the least of applications."""


class Holder(Protocol):
    """A connection."""

    def give_up_stalled(self, now: float, patience: float) -> None:
        """Break off what has taken nothing for so many seconds, and `report` what is left."""


class UnsentAnswers:
    """The sum over all connections of a worker."""

    def __init__(
        self,
        limit: int,
        *,
        now: Callable[[], float],
        soon: Callable[[Callable[[], None]], object],
        later: Callable[[float, Callable[[], None]], object],
        relieved: Callable[[], None],
    ) -> None:
        """`soon` calls back outside of what any connection is in; `relieved` counts."""
        self._limit = limit
        self._now = now
        self._soon = soon
        self._later = later
        self._relieved = relieved
        self._sizes: dict[Holder, int] = {}
        self._is_due = False
        self._turns = 0
        self._begun = 0
        self._is_resting = False
        self.total = 0

    def report(self, holder: Holder, size: int) -> None:
        """Say how many bytes a connection keeps now; 0 when it is gone."""
        self.total += size - self._sizes.pop(holder, 0)
        if size:
            self._sizes[holder] = size
        if self.total > self._limit and not (self._is_due or self._is_resting):
            self._is_due = True
            self._soon(self.relieve)

    @property
    def is_settling(self) -> bool:
        """What was broken off is still in memory, or many have begun: no more is to begin."""
        return self._turns > 0

    def begun(self) -> None:
        """Count a request: what it will leave unsent is known only when its call has run."""
        self._begun += 1
        if self._begun >= REQUESTS_BEGUN:
            self._wait()

    def _wait(self) -> None:
        self._begun = 0
        if not self._turns:
            self._soon(self._settle)
        self._turns = SETTLE_TURNS

    def _settle(self) -> None:
        self._turns -= 1
        if self._turns:
            self._soon(self._settle)

    def relieve(self) -> None:
        """Break off as much as is due; not while any connection handles events. Many connections
        may be read in one turn of the loop, so that to wait for the next would be too late.
        """
        if not self._is_due:
            return
        self._is_due = False
        self._wait()
        now = self._now()
        goal = int(self._limit * RELIEF)
        for patience in PATIENCES:
            for holder in sorted(self._sizes, key=self._sizes.__getitem__, reverse=True):
                if self.total <= goal:
                    return
                before = self.total
                holder.give_up_stalled(now, patience)
                if self.total < before:
                    self._relieved()
        if self.total <= goal:
            return
        self._is_resting = True
        self._later(PAUSE, self._try_again)

    def _try_again(self) -> None:
        self._is_resting = False
        self._is_due = self.total > self._limit
        self.relieve()

"""When requests are balanced, not only connections, and when clients are asked to come again.
Sans-IO.

A keep-alive connection is stuck with its worker while that one computes. Two remedies, for two
kinds:

    plaintext HTTP/1.1   handed back to the master between requests (`BalanceSwitch`). Costs 30 to
                         60 us per request, so it is done only while handlers hog an event loop
    TLS, HTTP/2, HTTP/3  cannot move; some are closed in order, so that their clients come back
                         through the dispatcher (`Shedding`)

Called by the master only, each time it looks at the beats.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ON_LAG: Final = 0.005
"""Seconds that a loop is late on average before requests are balanced: a handler of 25 ms every
second, which is when somebody else begins to notice."""
OFF_LAG: Final = 0.001
OFF_DELAY: Final = 5.0
"""Seconds that every loop must have been in time before connections stay where they are again."""
UNEVEN: Final = 4.0
"""Times that the latest loop is later than the earliest. When all are equally late nobody could
take work from another: then moving connections would only cost."""
CHEAP_MOVES: Final = 1500.0
"""Connections handed back in a second by one worker, below which it does not matter that loops are
late alike: 9 % of its time at 60 us each. Without this, balancing would end its own reason: it
makes all workers equally late."""
DEAR_LAG: Final = 0.02
"""What it takes beyond that: requests must be short then, and moving each costs more than it gains
unless somebody computes for long."""
DEAR_FOR: Final = 60.0
"""Seconds for which that is remembered, so that it is not tried again every few seconds."""
MOVES_INTERVAL: Final = 0.5
"""Seconds over which they are counted."""

SHED_RATIO: Final = 2.0
"""Times the load of the others from which a worker gives connections away."""
SHED_MARGIN: Final = 16
"""And by how many connections at least, so that small numbers are no imbalance."""
SHED_AFTER: Final = 5.0
"""Seconds that it must have lasted."""
SHED_INTERVAL: Final = 1.0
SHED_SHARE: Final = 0.1
"""Part of its connections that a worker closes each SHED_INTERVAL."""


class BalanceMode(enum.Enum):
    """What --balance says."""

    CONNECTION = "connection"
    REQUEST = "request"
    AUTO = "auto"


class BalanceSwitch:
    """Whether workers shall hand idle connections back."""

    def __init__(self, mode: BalanceMode) -> None:
        self.mode = mode
        self._needed_until = -math.inf
        self._moved = 0
        self._counted_at = -math.inf
        self._dear_until = -math.inf
        self.on = mode is BalanceMode.REQUEST

    def observe(self, lags: Mapping[int, float], moved: int, now: float) -> bool:
        """Look at how late each ready worker's loop is, in seconds by worker_id, and at how many
        connections were handed back since the start; return `on`.
        """
        if self.mode is BalanceMode.AUTO:
            self._count_moves(moved, len(lags), now)
            dear = now < self._dear_until
            latest = max(lags.values(), default=0.0)
            uneven = len(lags) > 1 and latest >= UNEVEN * min(lags.values())
            worth_it = uneven or (self.on and not dear and len(lags) > 1)
            least = DEAR_LAG if dear else OFF_LAG if self.on else ON_LAG
            if worth_it and latest > least:
                self._needed_until = now + OFF_DELAY
            self.on = now < self._needed_until
        return self.on

    def _count_moves(self, moved: int, workers: int, now: float) -> None:
        elapsed = now - self._counted_at
        if elapsed >= MOVES_INTERVAL:
            if moved - self._moved > CHEAP_MOVES * elapsed * max(workers, 1):
                if now >= self._dear_until:
                    # Until now a little was enough to keep it on.
                    self._needed_until = now
                self._dear_until = now + DEAR_FOR
            self._moved = moved
            self._counted_at = now


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """What `Shedding` looks at."""

    score: int
    """What the dispatcher chooses by, in connections."""
    connections: int
    """Connections that it could close."""


class Shedding:
    """Which workers shall ask how many of their clients to come again."""

    def __init__(self) -> None:
        self._overloaded_since: dict[int, float] = {}
        self._next_at = -math.inf

    def observe(self, loads: Mapping[int, WorkerLoad], now: float) -> dict[int, int]:
        """Look at the ready workers, by worker_id; return how many connections each shall close."""
        if now < self._next_at:
            return {}
        self._next_at = now + SHED_INTERVAL
        total = sum(load.score for load in loads.values())
        overloaded = {
            worker_id: self._overloaded_since.get(worker_id, now)
            for worker_id, load in loads.items()
            if len(loads) > 1 and _is_overloaded(load, (total - load.score) / (len(loads) - 1))
        }
        self._overloaded_since = overloaded
        return {
            worker_id: math.ceil(loads[worker_id].connections * SHED_SHARE)
            for worker_id, since in overloaded.items()
            if now - since >= SHED_AFTER and loads[worker_id].connections > 1
        }


def _is_overloaded(load: WorkerLoad, others: float) -> bool:
    return load.score > others * SHED_RATIO and load.score - others >= SHED_MARGIN

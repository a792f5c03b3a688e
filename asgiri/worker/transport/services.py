"""What every connection of a worker shares. Built once by `runtime`, handed to each session."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asgiri.config import Config
from asgiri.ipc.scoreboard import Scoreboard
from asgiri.worker.asgi.request import RequestEnvironment
from asgiri.worker.asgi.scope import ScopeBuilder
from asgiri.worker.asgi.websocket import WebSocketEnvironment
from asgiri.worker.transport.deadlines import Deadlines
from asgiri.worker.transport.handback import HandBack

if TYPE_CHECKING:
    from asgiri.worker.transport.session import HttpSession


@dataclass(slots=True, kw_only=True, eq=False)
class WorkerServices:
    """One per worker process."""

    config: Config
    loop: asyncio.AbstractEventLoop
    now: Callable[[], float]
    """Monotonic seconds; the same clock as `loop.time()`, but not rounded to the loop's last turn.
    """
    requests: RequestEnvironment
    """What an exchange needs: application, response defaults, counters, access log."""
    websockets: WebSocketEnvironment
    scopes: ScopeBuilder
    scoreboard: Scoreboard
    deadlines: Deadlines
    sessions: dict[HttpSession, None] = field(default_factory=dict)
    """Every open connection, the oldest first, and closed ones whose application calls have not
    returned. Keeps both alive.
    """
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Of the connections that come, for the access log."""
    hand_back: HandBack | None = None
    """Where idle connections go; None when there is no master to take them."""
    draining: bool = False
    """The master told us to drain: sessions that begin now are told at once."""

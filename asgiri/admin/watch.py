"""The board as the application sees it: read when somebody asks, and at most ten times a second."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from asgiri.ipc.board import BoardReader, BoardSnapshot
from asgiri.status import READ_ATTEMPTS, READ_PAUSE, ProcessTable, build_status

FRESH_FOR: Final = 0.1
"""Seconds for which a status is good enough: the board itself changes four times a second, and
asking the system for a process costs 0.1 ms."""


class Watch:
    """Gives the status to whoever asks."""

    def __init__(self, reader: BoardReader) -> None:
        self._reader = reader
        self._processes = ProcessTable()
        self._last: BoardSnapshot | None = None
        self._status: dict[str, Any] = {}
        self._until = 0.0

    async def status(self) -> dict[str, Any]:
        """Return it; {} before the first publication."""
        now = time.monotonic()
        if now >= self._until:
            snapshot = await self._snapshot()
            if snapshot is not None:
                self._status = build_status(snapshot, self._processes)
            self._until = now + FRESH_FOR
        return self._status

    async def _snapshot(self) -> BoardSnapshot | None:
        for _ in range(READ_ATTEMPTS):
            snapshot = self._reader.read()
            if snapshot is not None:
                self._last = snapshot
                break
            await asyncio.sleep(READ_PAUSE)
        # Else the master ended in the midst of writing: what it said before is still true.
        return self._last

"""Back-pressure on what comes in: bytes of request bodies that wait for the application.

HTTP/2 and HTTP/3 hold a peer back by their windows; HTTP/1.1 has none, there the transport stops
reading.
"""

from __future__ import annotations

from asgiri.config import FlowConfig


class ReceiveBacklog:
    """Counts what waits and says when to stop and when to go on."""

    __slots__ = ("_high_water", "_low_water", "is_full", "size")

    def __init__(self, config: FlowConfig) -> None:
        self._high_water = config.high_water
        self._low_water = config.low_water
        self.size = 0
        self.is_full = False
        """Above the high-water mark, and not yet below the low one."""

    def add(self, size: int) -> None:
        self.size += size
        if self.size >= self._high_water:
            self.is_full = True

    def take(self, size: int) -> None:
        self.size -= size
        if self.size <= self._low_water:
            self.is_full = False

    def clear(self) -> None:
        """Nobody waits for the rest any more."""
        self.size = 0
        self.is_full = False

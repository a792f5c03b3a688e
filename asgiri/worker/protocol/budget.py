"""Token bucket for things that a peer may do now and then but not all the time. Sans-IO: the clock
is an argument.
"""

from __future__ import annotations


class Budget:
    """Holds `burst` tokens at most and at first, and gains `per_second` of them."""

    __slots__ = ("_burst", "_per_second", "_tokens", "_updated")

    def __init__(self, *, burst: float, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._tokens = burst
        self._updated: float | None = None

    def spend(self, now: float) -> bool:
        """Take one token; False when there is none. `now` is in monotonic seconds."""
        if self._updated is not None:
            gained = (now - self._updated) * self._per_second
            self._tokens = min(self._burst, self._tokens + gained)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def earn(self, tokens: float) -> None:
        """Give tokens back for something useful that the peer did."""
        self._tokens = min(self._burst, self._tokens + tokens)

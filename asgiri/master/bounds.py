"""Bounded memory and bounded rates for what strangers send. Sans-IO; called by `steering`.

Nothing here has a timer: what is too old is found out when somebody asks.
"""

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["SwappedTable", "TokenBucket"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class TokenBucket:
    """`rate` in a second on average, a second's worth at once."""

    __slots__ = ("_filled_at", "_tokens", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        """May be changed at any time."""
        self._tokens = math.inf  # full: cut to `rate` by the first call
        self._filled_at = 0.0

    def take(self, now: float) -> bool:
        """Take one token; False when there is none."""
        tokens = min(self.rate, self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now
        if tokens < 1.0:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1.0
        return True


class SwappedTable(Generic[Key, Value]):
    """At most `capacity` entries, each for one to two `lifetime`s (seconds) after its last use.

    Two dicts: every `lifetime` seconds the older one is dropped whole and the younger takes its
    place. So there is no timer per entry, no sweep, and no walk through a full table. What does
    not fit is refused, not swapped for another entry: a flood must not push out what is in use.
    """

    __slots__ = ("_capacity", "_lifetime", "_new", "_old", "_swap_at")

    def __init__(self, *, capacity: int, lifetime: float) -> None:
        self._capacity = capacity
        self._lifetime = lifetime
        self._new: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}
        self._swap_at = -math.inf

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    @property
    def is_full(self) -> bool:
        """True until room is made by time; `use` and `put` notice that it passed."""
        return len(self) >= self._capacity

    def use(self, key: Key, now: float) -> Value | None:
        """Return the entry and let it live on; None when there is none."""
        if now >= self._swap_at:
            self._swap(now)
        value = self._new.get(key)
        if value is None and (value := self._old.pop(key, None)) is not None:
            self._new[key] = value
        return value

    def holds(self, key: Key, now: float) -> bool:
        """Tell whether there is an entry; it does not live longer for that."""
        if now >= self._swap_at:
            self._swap(now)
        return key in self._new or key in self._old

    def put(self, key: Key, value: Value, now: float) -> bool:
        """Add or replace an entry; False when the table is full."""
        if now >= self._swap_at:
            self._swap(now)
        self._old.pop(key, None)
        if self.is_full and key not in self._new:
            return False
        self._new[key] = value
        return True

    def items(self, now: float) -> list[tuple[Key, Value]]:
        """Return all entries that live."""
        if now >= self._swap_at:
            self._swap(now)
        return [*self._old.items(), *self._new.items()]

    def _swap(self, now: float) -> None:
        if now < self._swap_at + self._lifetime:
            self._old = self._new
            # Not from `now`: a late question would let entries live for up to three lifetimes.
            self._swap_at += self._lifetime
        else:
            # Nobody asked for a whole lifetime: the younger half is too old as well.
            self._old = {}
            self._swap_at = now + self._lifetime
        self._new = {}

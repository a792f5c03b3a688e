"""Which connection a datagram belongs to, and what those get that belong to none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

from asgiri.ipc.tokens import ResetTokens
from asgiri.worker.protocol.budget import Budget

TOMBSTONE_SECONDS: Final = 10.0
"""How long a connection ID that is gone is remembered: longer than a packet is under way."""
MAX_TOMBSTONES: Final = 16_384
"""In each half of the table. Whoever is pushed out early gets a stateless reset, not silence."""
MAX_CLOSE_REPLIES: Final = 6
"""How often a CONNECTION_CLOSE is repeated: for the 1st, 2nd, 4th ... packet that comes after
it."""

RESET_RATE: Final = 100.0
"""Stateless resets a second, and at once."""
RESET_PAUSE: Final = 1.0
"""Seconds between two to one address, at least."""
SHORTEST_RESET_TRIGGER: Final = 43
SHORTEST_RESET: Final = 22
LONGEST_RESET: Final = 43
"""RFC 9000 §10.3: like a short packet, and shorter than what it answers, so that no two servers
reset each other for ever."""

_FIXED_BIT: Final = 0x40

Connection = TypeVar("Connection")


class Tombstone:
    """What is left of connection IDs that are gone. Those of a closed connection share one."""

    __slots__ = ("_close", "_next_reply", "_received")

    def __init__(self, close: bytes = b"") -> None:
        """Take our CONNECTION_CLOSE, if there was one."""
        self._close = close
        self._received = 0
        self._next_reply = 1

    def reply(self) -> bytes:
        """Count a packet that came; return what to answer, b"" for nothing (RFC 9000 §10.2.1)."""
        self._received += 1
        if self._received < self._next_reply or self._next_reply >= 1 << MAX_CLOSE_REPLIES:
            return b""
        self._next_reply *= 2
        return self._close


class ConnectionTable(Generic[Connection]):
    """Connection IDs: living ones to their connections, dead ones to tombstones."""

    def __init__(self) -> None:
        self.living: Final[dict[bytes, Connection]] = {}
        self._dead: dict[bytes, Tombstone] = {}
        self._dead_before: dict[bytes, Tombstone] = {}
        self._swapped_at = 0.0

    def add(self, connection_id: bytes, connection: Connection) -> None:
        self.living[connection_id] = connection

    def bury(
        self, connection_ids: Iterable[bytes], now: float, tombstone: Tombstone | None = None
    ) -> None:
        """Keep only in mind that these were in use. Without a tombstone: each has its own."""
        if now - self._swapped_at >= TOMBSTONE_SECONDS or len(self._dead) >= MAX_TOMBSTONES:
            # An entry stays for one to two periods.
            self._dead_before = self._dead if now - self._swapped_at < 2 * TOMBSTONE_SECONDS else {}
            self._dead = {}
            self._swapped_at = now
        for connection_id in connection_ids:
            self.living.pop(connection_id, None)
            self._dead[connection_id] = tombstone or Tombstone()

    def tombstone(self, connection_id: bytes) -> Tombstone | None:
        return self._dead.get(connection_id) or self._dead_before.get(connection_id)

    @property
    def tombstones(self) -> int:
        return len(self._dead) + len(self._dead_before)


class StatelessResets:
    """Answers packets for connections that nobody has, as far as that is wise."""

    def __init__(self, tokens: ResetTokens, *, random: Callable[[int], bytes] = os.urandom) -> None:
        self._tokens = tokens
        self._random = random
        self._budget = Budget(burst=RESET_RATE, per_second=RESET_RATE)
        self._addresses: set[Any] = set()
        """Those that got one since `_since`. RESET_RATE bounds it."""
        self._since = 0.0

    def answer(self, connection_id: bytes, size: int, address: Any, now: float) -> bytes:
        """Return a reset for a packet of this size, or b""."""
        if size < SHORTEST_RESET_TRIGGER:
            return b""
        if now - self._since >= RESET_PAUSE:
            self._addresses.clear()
            self._since = now
        if address in self._addresses or not self._budget.spend(now):
            return b""
        self._addresses.add(address)
        random = self._random(LONGEST_RESET)
        longest = min(size - 1, LONGEST_RESET)
        length = SHORTEST_RESET + random[0] % (longest - SHORTEST_RESET + 1)
        token = self._tokens.token(connection_id)
        first = bytes((_FIXED_BIT | random[1] & 0x3F,))
        return first + random[2 : length - len(token) + 1] + token

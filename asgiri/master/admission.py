"""What an Initial must show before a worker spends anything on it. Sans-IO; called by `steering`.

An Initial costs a worker 0.8 ms and 91 KB, and its address may be forged. Retry costs the master
some microseconds and the sender a round trip, and proves the address (RFC 9000 §8.1.2). In mode
auto it begins when a budget is exceeded, and lasts RETRY_HOLD: both datagrams of one ClientHello
meet the same fate, and a flood is not let through in slices.

Proven addresses are limited as well, but only when handshakes beyond what the workers should bear
come in, and then network by network: a flood from real hosts is stopped, the others are not.
"""

import enum
from typing import Any, Final, Protocol

from asgiri.ipc.records import pack_ip
from asgiri.master.bounds import SwappedTable, TokenBucket

__all__ = ["Admission", "QuicLoad", "RetryMode", "is_crowded"]

RETRY_ABOVE_HALF_OPEN: Final = 64
"""Half-open connections of the chosen worker; a quarter of what it holds before it refuses."""
UNVALIDATED_RATE: Final = 100.0
"""Unvalidated Initials per second and ready worker: 8 % of a worker's time."""
INITIALS_BELOW_RING_FILL: Final = 0.5
"""New connections leave the upper half of a ring to those that exist."""
RETRY_HOLD: Final = 1.0
"""Seconds that Retry stays on after a budget was exceeded."""
HANDSHAKE_RATE: Final = 450.0
"""Proven Initials per second and ready worker that need no more: half of what it could do."""
NETWORK_HANDSHAKE_RATE: Final = 50.0
"""Per second and network beyond that."""
NETWORKS_COUNTED: Final = 4096
NETWORK_LIFETIME: Final = 10.0


class RetryMode(enum.Enum):
    """When an address is validated by Retry before a worker spends anything on it."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class QuicLoad(Protocol):
    """What admission asks about one worker; read only for datagrams that begin a connection."""

    @property
    def half_open(self) -> int:
        """Connections whose handshake is not complete."""

    @property
    def ring_fill(self) -> float:
        """0 to 1."""


def is_crowded(load: QuicLoad) -> bool:
    """Tell whether a ring has no room left for Initials."""
    return load.ring_fill > INITIALS_BELOW_RING_FILL


class Admission:
    """Decides about Initials that begin a connection; counts them, and nothing else."""

    def __init__(self, mode: RetryMode) -> None:
        self.mode = mode
        self._retry_until = 0.0
        self._unvalidated = TokenBucket(UNVALIDATED_RATE)
        self._handshakes = TokenBucket(HANDSHAKE_RATE)
        self._networks: SwappedTable[bytes, TokenBucket] = SwappedTable(
            capacity=NETWORKS_COUNTED, lifetime=NETWORK_LIFETIME
        )

    def set_workers(self, count: int) -> None:
        """Budget for so many ready workers."""
        self._unvalidated.rate = UNVALIDATED_RATE * max(1, count)
        self._handshakes.rate = HANDSHAKE_RATE * max(1, count)

    def must_prove_address(self, load: QuicLoad, now: float) -> bool:
        """Tell whether an Initial without a valid token is answered by Retry."""
        if self.mode is not RetryMode.AUTO:
            return self.mode is RetryMode.ALWAYS
        # Taken also while Retry is on: the rate is that of what arrives, not of what is let in.
        within_rate = self._unvalidated.take(now)
        if not within_rate or load.half_open > RETRY_ABOVE_HALF_OPEN or is_crowded(load):
            self._retry_until = now + RETRY_HOLD
        return now < self._retry_until

    def may_handshake(self, address: tuple[Any, ...], now: float) -> bool:
        """Tell whether an Initial from this proven address is let in."""
        if self._handshakes.take(now):
            return True
        network = _network(address)
        bucket = self._networks.use(network, now)
        if bucket is None:
            bucket = TokenBucket(NETWORK_HANDSHAKE_RATE)
            if not self._networks.put(network, bucket, now):
                return False
        return bucket.take(now)


def _network(address: tuple[Any, ...]) -> bytes:
    """Return the part of an address that one customer usually has all of: a /24 or a /56."""
    packed = pack_ip(address[0])
    return packed[:3] if len(packed) == 4 else packed[:7]

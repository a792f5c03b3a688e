"""Which worker a QUIC datagram belongs to. Sans-IO; called by the master's `receiver` only.

Signatures first; the decisions follow.
"""

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from asgiri.ipc.connection_id import ConnectionIdCodec, ConnectionIdMint
from asgiri.ipc.tokens import ResetTokens, RetryTokens

__all__ = [
    "DropReason",
    "QuicLoad",
    "RetryMode",
    "Steering",
    "SteeringStatistics",
    "WorkerChooser",
    "is_one_train",
]

Destination = TypeVar("Destination")


class DropReason(enum.IntEnum):
    """Why a datagram was discarded. `steer_untrusted` counts its own; others call `count_drop`."""

    TOO_SHORT = 0
    FIXED_BIT_CLEAR = 1
    UNKNOWN_CONNECTION_ID = 2  # does not authenticate: silence
    RETRY_ID_IN_SHORT_HEADER = 3
    WORKER_GONE = 4  # long header, or a short one that may not be answered by a reset
    RESET_RATE = 5
    MALFORMED_LONG_HEADER = 6
    VERSION_NEGOTIATION = 7  # version 0, which only servers send
    VERSION_UNKNOWN_SHORT = 8  # too short to be answered by version negotiation
    CONNECTION_ID_LENGTH = 9
    INITIAL_TOO_SHORT = 10
    PACKET_TYPE = 11  # Retry, which only servers send
    NO_INITIAL_BEFORE = 12  # 0-RTT or Handshake of a connection nobody has begun
    TOKEN_INVALID = 13  # to the connection ID of a Retry, without its token
    HANDSHAKE_RATE = 14  # validated addresses of one network beyond their share
    NO_WORKER = 15
    RING_HALF_FULL = 16  # a new connection's
    RING_FULL = 17  # counted by the receiver


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


class WorkerChooser(Protocol):
    """The part of `dispatcher.Dispatcher` that steering uses."""

    def choose_quic(self, now: float, client_ip: str) -> int | None:
        """Return the worker for a new connection, None when there is none."""

    def assigned_quic(self, worker_id: int) -> None:
        """Count a connection that was given to this worker."""

    def rendezvous(self, key: bytes) -> int | None:
        """Return the ready worker that `key` always leads to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringStatistics:
    """Counters since the start."""

    drops: dict[str, int]
    versions_sent: int
    retries_sent: int
    resets_sent: int
    new_connections: int
    tokens_valid: int
    map_entries: int
    map_full: int


class Steering(Generic[Destination]):
    """Decide for each datagram: a worker's destination, a datagram to send back, or a drop.

    `Destination` is whatever the caller registers for a worker: its ring, its handle.
    """

    def __init__(
        self,
        *,
        codec: ConnectionIdCodec,
        mint: ConnectionIdMint,
        reset_tokens: ResetTokens,
        retry_tokens: RetryTokens,
        chooser: WorkerChooser,
        random: Callable[[int], bytes],
        retry: RetryMode = RetryMode.AUTO,
    ) -> None:
        self.flags = 0
        """RecordFlag bits of the datagram steered last; valid when it got a destination."""

    # Workers

    def add_worker(self, worker_id: int, destination: Destination, load: QuicLoad) -> None:
        """Route to this worker from now on; new connections only once it is ready."""
        raise NotImplementedError

    def remove_worker(self, worker_id: int) -> None:
        """Forget a worker that exited: its connections get stateless resets from now on."""
        raise NotImplementedError

    def set_ready(self, worker_ids: Collection[int]) -> None:
        """Say who takes new connections. One assignment: a reload switches in one step."""
        raise NotImplementedError

    # Datagrams

    def steer_untrusted(
        self, datagram: bytes, address: tuple[Any, ...], now: float
    ) -> Destination | bytes | DropReason:
        """Decide about one datagram. bytes: send them back to `address`. Never raises.

        What is sent back is never longer than what came.
        """
        raise NotImplementedError

    def count_drop(self, reason: DropReason) -> None:
        """Count a datagram that was dropped after it was steered: the ring was full."""
        raise NotImplementedError

    def statistics(self) -> SteeringStatistics:
        """Return the counters."""
        raise NotImplementedError


def is_one_train(buffer: bytes, segment_size: int) -> bool:
    """Tell whether all segments of a GRO buffer are short headers to one connection ID.

    Then steering the first packet (or the whole buffer: only its head is read) steers all, and one
    record carries the train. Otherwise each segment has to be steered by itself.
    """
    raise NotImplementedError

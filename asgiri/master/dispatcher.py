"""Which worker a new connection goes to. Sans-IO; called by the master only.

Signatures first; the decisions follow.
"""

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BalancePolicy", "Dispatcher", "DispatcherStatistics", "LoadView"]


class BalancePolicy(enum.Enum):
    """What decides between workers that may take a connection."""

    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"
    CLIENT_IP = "client-ip"


class LoadView(Protocol):
    """What a worker says about itself: `ipc.scoreboard.Scoreboard`, of which `Cell`s are read."""

    def get(self, cell: int) -> int:
        """Return one cell of the worker's page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherStatistics:
    """Counters since the start."""

    tcp_assigned: int
    quic_assigned: int
    tcp_withdrawn: int
    nobody_eligible: int
    stale_bursts: int


class Dispatcher:
    """Choose among the ready workers by what is outstanding at each.

    `choose_*` decides and counts nothing; the caller says `assigned_*` once the connection is on
    its way, and `withdrawn_tcp` when it was not delivered after all.
    """

    def __init__(self, policy: BalancePolicy, *, random: Callable[[int], bytes]) -> None:
        raise NotImplementedError

    # Workers

    def add_worker(
        self, worker_id: int, slot: int, load: LoadView, *, tcp_assigned: int = 0
    ) -> None:
        """Know a worker; nothing goes to it before `set_ready` names it."""
        raise NotImplementedError

    def remove_worker(self, worker_id: int) -> None:
        """Forget a worker that exited."""
        raise NotImplementedError

    def set_ready(self, worker_ids: Collection[int]) -> None:
        """Say who takes new connections. One assignment: a reload switches in one step."""
        raise NotImplementedError

    # New connections

    def choose_tcp(self, now: float, client_ip: str = "") -> int | None:
        """Return a worker_id; None: nobody may take it, stop accepting or keep it."""
        raise NotImplementedError

    def choose_quic(self, now: float, client_ip: str = "") -> int | None:
        """Return a worker_id for a new QUIC connection, None when no worker is ready."""
        raise NotImplementedError

    def rendezvous(self, key: bytes) -> int | None:
        """Return the ready worker that `key` leads to, whatever its load. Stable per slot."""
        raise NotImplementedError

    def assigned_tcp(self, worker_id: int, count: int = 1) -> int:
        """Count connections as this worker's; return its total, for the assignments page."""
        raise NotImplementedError

    def withdrawn_tcp(self, worker_id: int, count: int = 1) -> int:
        """Count connections that the worker never read; return its total of assigned ones."""
        raise NotImplementedError

    def assigned_quic(self, worker_id: int) -> None:
        """Count a QUIC connection as this worker's."""
        raise NotImplementedError

    # Workers that stand still

    def observe(self, now: float) -> None:
        """Look at every beat. Call it each OBSERVE_INTERVAL, also when nothing arrives."""
        raise NotImplementedError

    def take_back(self, now: float) -> list[int]:
        """Return the workers whose undelivered connections others could serve now (D23)."""
        raise NotImplementedError

    def statistics(self) -> DispatcherStatistics:
        """Return the counters."""
        raise NotImplementedError

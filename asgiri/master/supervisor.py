"""Which workers should exist: start, exits, reload, recycling, stop. Sans-IO.

Signatures first; the decisions follow. Called by the master's `runtime` only: each input returns
the actions to carry out, in their order.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = [
    "Action",
    "Drain",
    "GenerationBegun",
    "Kill",
    "KillSignal",
    "Level",
    "Quit",
    "ReloadEnded",
    "ReloadPhase",
    "Report",
    "Spawn",
    "Started",
    "StopListening",
    "Stopped",
    "Supervisor",
    "Switch",
    "Vitals",
    "WorkerPolicy",
]


class WorkerPolicy(Protocol):
    """What `config.WorkerConfig` says about the lives of workers."""

    @property
    def count(self) -> int: ...
    @property
    def boot_timeout(self) -> float: ...
    @property
    def graceful_timeout(self) -> float: ...
    @property
    def timeout(self) -> float: ...
    @property
    def reload_surge(self) -> int: ...
    @property
    def max_requests(self) -> int: ...
    @property
    def max_requests_jitter(self) -> int: ...
    @property
    def max_worker_rss(self) -> int: ...
    @property
    def max_worker_lifetime(self) -> float: ...


class Vitals(NamedTuple):
    """What one worker's scoreboard says, read by the runtime."""

    beat: float
    """Seconds on the clock of `now`; 0 before the first beat."""
    requests: int
    rss: int


class KillSignal(enum.Enum):
    """Named, not numbered: the numbers are the operating system's."""

    ABORT = "SIGABRT"
    KILL = "SIGKILL"


class Level(enum.Enum):
    """Of a report."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class ReloadPhase(enum.Enum):
    """DISPATCH D17."""

    IDLE = "idle"
    CANARY = "canary"
    SPAWN = "spawn"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class GenerationBegun:
    """A generation starts to exist; its configuration is the one last given to `reload`."""

    generation: int


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process. `worker_spawn_failed` is the answer when that is not possible."""

    worker_id: int
    slot: int
    generation: int
    selftest: bool
    """The first worker of its generation: it proves aioquic's connection IDs."""


@dataclass(frozen=True, slots=True)
class Switch:
    """New connections and Initials go to these workers from now on: one assignment."""

    generation: int
    ready: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Send Drain(timeout)."""

    worker_id: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Quit:
    """Send Quit(): end without finishing anything."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send a signal, through the pidfd where there is one."""

    worker_id: int
    signal: KillSignal


@dataclass(frozen=True, slots=True)
class StopListening:
    """Close the TCP listeners; UDP sockets stay for the connections that are open."""


@dataclass(frozen=True, slots=True)
class Started:
    """The first generation is ready: tell systemd, write the pid file."""

    generation: int


@dataclass(frozen=True, slots=True)
class ReloadEnded:
    """`failure` is "" when the new generation took over; otherwise nothing was disturbed."""

    generation: int
    failure: str


@dataclass(frozen=True, slots=True)
class Report:
    """One fact for the log; about a worker unless `worker_id` is None."""

    level: Level
    text: str
    worker_id: int | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """No worker is left: leave with this status."""

    exit_code: int


Action = (
    GenerationBegun
    | Spawn
    | Switch
    | Drain
    | Quit
    | Kill
    | StopListening
    | Started
    | ReloadEnded
    | Report
    | Stopped
)


class Supervisor:
    """Feed it what happened, carry out what it returns, in that order."""

    def __init__(
        self, policy: WorkerPolicy, *, first_worker_id: int, random: Callable[[], float]
    ) -> None:
        raise NotImplementedError

    def start(self, now: float) -> list[Action]:
        """Spawn the first generation."""
        raise NotImplementedError

    # What workers do

    def worker_spawn_failed(self, worker_id: int, reason: str, now: float) -> list[Action]:
        """The process could not be started; there is nothing to reap."""
        raise NotImplementedError

    def worker_ready(self, worker_id: int, now: float) -> list[Action]:
        """The worker sent Ready."""
        raise NotImplementedError

    def worker_failed(self, worker_id: int, stage: str, summary: str, now: float) -> list[Action]:
        """The worker sent Failed; it exits by itself."""
        raise NotImplementedError

    def worker_drained(self, worker_id: int, now: float) -> list[Action]:
        """The worker sent Drained; it exits by itself."""
        raise NotImplementedError

    def worker_exited(self, worker_id: int, status: int, now: float) -> list[Action]:
        """The process was reaped. `status` as in subprocess: negative for a signal."""
        raise NotImplementedError

    def observe(self, vitals: Mapping[int, Vitals], now: float) -> list[Action]:
        """Find hung workers and those due for recycling. Call it each OBSERVE_INTERVAL."""
        raise NotImplementedError

    # What the operator wants

    def reload(self, policy: WorkerPolicy, now: float) -> list[Action]:
        """Begin a new generation, now or when the reload under way has ended."""
        raise NotImplementedError

    def recycle(self, worker_id: int, reason: str, now: float) -> list[Action]:
        """Replace one worker; the replacement is ready before the old one drains."""
        raise NotImplementedError

    def scale(self, change: int, now: float) -> list[Action]:
        """One worker more or less (SIGTTIN, SIGTTOU); never less than one."""
        raise NotImplementedError

    def stop(self, now: float) -> list[Action]:
        """Drain everything, then stop; at once when called again."""
        raise NotImplementedError

    def quit(self, now: float) -> list[Action]:
        """Stop without finishing what is in flight."""
        raise NotImplementedError

    # Time

    def tick(self, now: float) -> list[Action]:
        """Carry on whatever waited for this moment."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """Return when `tick` is due, None when nothing waits."""
        raise NotImplementedError

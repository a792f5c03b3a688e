"""What the supervisor asks for. Sans-IO: values only; `fleet` and `runtime` carry them out."""

import enum
from dataclasses import dataclass, field

__all__ = [
    "Action",
    "Drain",
    "GenerationBegun",
    "Kill",
    "KillSignal",
    "Level",
    "Quit",
    "ReloadEnded",
    "Report",
    "Spawn",
    "Started",
    "StopListening",
    "Stopped",
    "Switch",
]


class KillSignal(enum.Enum):
    """Named, not numbered: the numbers are the operating system's."""

    ABORT = "SIGABRT"
    KILL = "SIGKILL"


class Level(enum.Enum):
    """Of a report."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


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
    place: str = field(default="", compare=False)
    """Slot and generation, for a worker that has no process to be named by."""


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

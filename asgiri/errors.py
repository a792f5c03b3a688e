"""The exception tree. A message says who, what, and the numbers; none is chosen by its text."""

import enum
from collections.abc import Iterable, Iterator

__all__ = [
    "AppError",
    "AsgiriError",
    "ChannelClosedError",
    "ClientDisconnected",
    "ConfigError",
    "ExitCode",
    "FdsLostError",
    "IpcError",
    "LocalProtocolError",
    "RingCorruptError",
    "RingUnavailableError",
    "StartError",
    "TakeoverError",
]


class AsgiriError(Exception):
    """Root of the tree; never raised itself."""


class ConfigError(AsgiriError):
    """An option has a value that it cannot have. Carries every such problem, not only the first."""

    def __init__(
        self, option: str, value: object, remedy: str, *, others: Iterable["ConfigError"] = ()
    ) -> None:
        super().__init__(option, value, remedy)
        self.option = option
        self.value = value
        self.remedy = remedy
        self._others = tuple(others)

    @classmethod
    def raise_all(cls, problems: Iterable["ConfigError"]) -> None:
        """Raise one error that carries all of `problems`; do nothing when there is none."""
        flat = [problem for error in problems for problem in error.problems()]
        if flat:
            first, *others = flat
            raise cls(first.option, first.value, first.remedy, others=others)

    def problems(self) -> Iterator["ConfigError"]:
        yield ConfigError(self.option, self.value, self.remedy)
        yield from self._others

    def __str__(self) -> str:
        return "\n".join([f"{self.option}={self.value!s}: {self.remedy}", *map(str, self._others)])


class TakeoverError(AsgiriError):
    """The state that an earlier program of the master left cannot be used."""


class StartError(AsgiriError):
    """The server cannot start: a port, a permission, a certificate. One line, with the remedy."""

    @classmethod
    def from_os_error(cls, error: OSError, what: str, remedy: str = "") -> "StartError":
        """Say what was attempted, what the system answered and, where one is known, what to do."""
        answer = error.strerror or str(error)
        return cls(f"{what}: {answer}" + (f"; {remedy}" if remedy else ""))


class ExitCode(enum.IntEnum):
    """What the exit status of the master tells whoever started it."""

    OK = 0
    """It was told to stop, and did."""
    RUNTIME = 1
    """The machine said no: a port in use, a missing permission, a certificate."""
    USAGE = 2
    """The command line or the configuration is wrong."""
    APP_FAILED = 3
    """The application could not be imported, or its startup failed, before it ever served."""


class LocalProtocolError(AsgiriError):
    """A bug of ours: a call that the state it came in does not allow."""


class AppError(AsgiriError):
    """The application broke the ASGI contract."""


class ClientDisconnected(AsgiriError, OSError):
    """Raised by `send()` once the peer is gone. ASGI: "a server-specific subclass of OSError"."""


class IpcError(AsgiriError):
    """Only a restart of the worker repairs it."""


class ChannelClosedError(IpcError):
    """The other process closed its end of a channel."""


class FdsLostError(IpcError):
    """The kernel dropped file descriptors that were on their way to this process."""

    def __init__(self, message: str, frame: bytes) -> None:
        super().__init__(message)
        self.frame = frame
        """What they came with, which did arrive."""


class RingCorruptError(IpcError):
    """A datagram ring holds what no writer of ours puts there."""


class RingUnavailableError(IpcError):
    """This host has no shared-memory ring for us: the stream channel takes its place."""

"""What the master is given, and how it asks again at a reload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from asgiri.config import Config
from asgiri.errors import ConfigError, StartError
from asgiri.master.attendant import AttendantOrder
from asgiri.master.errand import Errand
from asgiri.master.loop import EventLoop

__all__ = ["Reread", "Rereading", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server runs with until a reload brings something else."""

    config: Config
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables that workers get beside the master's own. Some may be secret."""
    folder: str = ""
    """Where workers begin, without links: they may lead elsewhere at the next reload. "" for the
    master's own.
    """
    started_in: str = ""
    """Where the command was given, if the master has left that folder."""

    def attendant(self) -> AttendantOrder:
        """Say what the attendant is started with."""
        return AttendantOrder(self.config, self.environment, self.folder)


@dataclass(frozen=True, slots=True)
class Reread:
    """How to ask again."""

    read: Callable[[bytes], Settings]
    """Reads everything, with what the command has said. May raise ConfigError or StartError."""
    command: Sequence[str] = ()
    """What has to run first, in a process of its own; empty for nothing."""
    folder: str = ""
    """Where that runs; "" for the master's own."""


class Rereading:
    """Asks again without waiting, once at a time."""

    def __init__(
        self,
        loop: EventLoop,
        reread: Reread,
        done: Callable[[Settings], None],
        refused: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._reread = reread
        self._done = done
        self._refused = refused
        self._errand: Errand | None = None
        self._again = False

    def begin(self) -> None:
        """Ask; `done` or `refused` follows, perhaps at once."""
        if not self._reread.command:
            self._read(b"")
        elif self._errand is not None:
            self._again = True  # the file may have changed after it was read
        else:
            try:
                self._errand = Errand(
                    self._loop, self._reread.command, self._came, folder=self._reread.folder
                )
            except OSError as error:
                self._refused(f"the configuration cannot be read: {error}")

    def _came(self, output: bytes) -> None:
        self._errand = None
        if self._again:
            self._again = False
            self.begin()
        else:
            self._read(output)

    def _read(self, output: bytes) -> None:
        try:
            settings = self._reread.read(output)
        except (ConfigError, StartError) as error:
            self._refused(str(error))
        else:
            self._done(settings)

    def cancel(self) -> None:
        """The server stops: nobody wants to know any more."""
        if self._errand is not None:
            self._errand.cancel()
            self._errand = None

"""What operators see and use of the master: the board, the admin worker, the control socket."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from asgiri.config import Config
from asgiri.errors import StartError
from asgiri.ipc.board import MasterCell
from asgiri.ipc.messages import Message, SetLogLevel
from asgiri.master import admin, control
from asgiri.master.admin import AdminWorker
from asgiri.master.binding import UnixAccess
from asgiri.master.control import Control
from asgiri.master.fleet import Fleet
from asgiri.master.listeners import Listeners
from asgiri.master.loop import EventLoop
from asgiri.master.orders import Orders
from asgiri.master.reporting import Reporting
from asgiri.master.supervisor import Supervisor

logger = logging.getLogger("asgiri.master")


@dataclass(frozen=True, slots=True, kw_only=True)
class OversightSockets:
    """What has to be opened while the process may: before it becomes another user."""

    admin: Listeners
    control: Listeners

    @classmethod
    def open(cls, config: Config, access: UnixAccess) -> OversightSockets:
        """Open what the configuration asks for. Raises StartError and leaves nothing open."""
        opened = admin.open_listeners(config.admin, access)
        try:
            return cls(admin=opened, control=control.open_listeners(config.admin, access))
        except StartError:
            opened.close()
            raise

    @classmethod
    def resume(cls, state: Mapping[str, Any]) -> OversightSockets:
        """Own what an earlier program of this process has opened."""
        sockets = cls(
            admin=Listeners(backlog=admin.BACKLOG, unix_access=UnixAccess(), quic=False),
            control=Listeners(backlog=control.BACKLOG, unix_access=UnixAccess(), quic=False),
        )
        sockets.admin.resume(state["admin_listeners"])
        sockets.control.resume(state["control_listeners"])
        return sockets

    def close(self) -> None:
        """Close everything; may be repeated."""
        self.admin.close()
        self.control.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The parts of the master that are watched, and what can be ordered."""

    loop: EventLoop
    supervisor: Supervisor
    fleet: Fleet
    reporting: Reporting
    reload: Callable[[], str]
    """Begins one; returns why it does not, or ""."""
    stop: Callable[[bool], None]
    """Stops, at once if so told."""
    stopped: Callable[[], None]
    """Called once after `Oversight.stop`, when nothing of it is left."""


class Oversight:
    """Owns the admin worker and the clients of the control socket. The board is `reporting`'s."""

    def __init__(self, server: Server, config: Config, sockets: OversightSockets) -> None:
        self._server = server
        self._config = config
        self._sockets = sockets
        self._admin = self._new_admin(server.stopped) if admin.is_wanted(config.admin) else None
        self._unwanted: AdminWorker | None = None
        """One that an earlier program of this process had, and this one has not."""
        self.orders = Orders(
            server.loop,
            server.supervisor,
            server.fleet,
            server.reporting,
            reload=server.reload,
            stop=server.stop,
            set_level=self._set_level,
        )
        self._control = Control(server.loop, sockets.control, self.orders)
        server.reporting.more = self._numbers

    def _new_admin(self, stopped: Callable[[], None]) -> AdminWorker:
        server = self._server
        return AdminWorker(
            server.loop, self._config, self._sockets.admin, server.reporting, stopped
        )

    @property
    def fleets(self) -> list[Fleet]:
        """The fleets of processes that are not the application's."""
        return [each.fleet for each in (self._admin, self._unwanted) if each is not None]

    def start(self) -> None:
        """Begin, before the application does: probes are answered from the first moment."""
        self._control.start()
        if self._admin is not None:
            self._admin.start()
            if self._config.admin.bind:
                logger.info("admin listens on %s", self._admin.describe())

    def configure(self, config: Config) -> None:
        """Go by another configuration: a reload has brought it."""
        self._config = config
        if self._server.fleet.log_level:
            self._set_level(config.log.level)
            self._remember_level("")
        if self._admin is not None:
            self._admin.reload(config)
        elif admin.is_wanted(config.admin):  # StatsD; an address takes a restart
            self._admin = self._new_admin(self._server.stopped)
            self._admin.start()

    def stop(self) -> None:
        """End, after the application has; at once when asked again."""
        if self._admin is None:
            self._server.stopped()
        else:
            self._admin.stop()

    def tell(self, message: Message) -> None:
        """Tell what concerns every process of the server."""
        for fleet in (self._server.fleet, *self.fleets):
            fleet.broadcast(message)

    def close(self) -> None:
        """Drop the clients of the control socket, and kill what is left of the rest."""
        self._control.close()
        for each in (self._admin, self._unwanted):
            if each is not None:
                each.abandon()

    def _set_level(self, level: str) -> None:
        logging.getLogger("asgiri").setLevel(level.upper())
        self._remember_level(level)
        self.tell(SetLogLevel(level))

    def _remember_level(self, level: str) -> None:
        for fleet in (self._server.fleet, *self.fleets):
            fleet.log_level = level

    def _numbers(self) -> dict[int, int]:
        spawned = 0 if self._admin is None else self._admin.supervisor.statistics.spawned
        return {
            MasterCell.ADMIN_SPAWNED: spawned,
            MasterCell.CONTROL_REQUESTS: self._control.requests,
            MasterCell.CONTROL_REFUSED: self._control.refused,
        }

    # A takeover

    def to_state(self) -> dict[str, Any]:
        """Describe it to the next program of this process."""
        return {
            "admin": None if self._admin is None else self._admin.to_state(),
            "admin_listeners": self._sockets.admin.to_state(),
            "control_listeners": self._sockets.control.to_state(),
        }

    def inherited_fds(self) -> list[int]:
        """Return the descriptors that `to_state` names."""
        listeners = (*self._sockets.admin, *self._sockets.control)
        fds = [listener.fileno() for listener in listeners]
        return fds + ([] if self._admin is None else self._admin.inherited_fds())

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with what `to_state` described, until workers of this program are ready."""
        self._control.start()
        known = state["admin"]
        if self._admin is None and known:
            self._unwanted = self._new_admin(lambda: None)
            self._unwanted.end(known)
        elif self._admin is not None and known:
            self._admin.resume(known)
        elif self._admin is not None:
            self._admin.start()
            if self._config.admin.bind and not self._sockets.admin:
                logger.warning("--admin is new: it takes effect with a restart, not by an upgrade")

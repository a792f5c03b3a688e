"""What operators see and use of the master: the board and the admin worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from asgiri.config import Config
from asgiri.errors import StartError
from asgiri.ipc.messages import Message
from asgiri.master.admin import BACKLOG, AdminWorker, is_wanted, open_admin_listeners
from asgiri.master.binding import UnixAccess
from asgiri.master.fleet import Fleet
from asgiri.master.listeners import Listeners
from asgiri.master.loop import EventLoop
from asgiri.master.reporting import Reporting

logger = logging.getLogger("asgiri.master")


class OversightSockets:
    """What has to be opened while the process may: before it becomes another user."""

    def __init__(self, admin: Listeners) -> None:
        self.admin = admin

    @classmethod
    def open(cls, config: Config, access: UnixAccess) -> OversightSockets:
        """Open what the configuration asks for. Raises StartError and leaves nothing open."""
        return cls(open_admin_listeners(config.admin, access))

    @classmethod
    def resume(cls, config: Config, state: Mapping[str, Any]) -> OversightSockets:
        """Own what an earlier program of this process had, and open what is new, if possible."""
        if state.get("admin"):
            admin = Listeners(backlog=BACKLOG, unix_access=UnixAccess(), quic=False)
            admin.resume(state["admin"]["listeners"])
            return cls(admin)
        try:
            return cls.open(config, UnixAccess())
        except StartError as error:
            # Connections of clients are worth more than this.
            logger.error("the server goes on without --admin: %s", error)
            return cls(Listeners(backlog=BACKLOG, unix_access=UnixAccess(), quic=False))

    def close(self) -> None:
        """Close everything; may be repeated."""
        self.admin.close()


class Oversight:
    """Owns the admin worker. The board is `reporting`'s."""

    def __init__(
        self,
        loop: EventLoop,
        config: Config,
        reporting: Reporting,
        sockets: OversightSockets,
        stopped: Callable[[], None],
    ) -> None:
        """`stopped` is called once after `stop`, when nothing of it is left."""
        self._config = config
        self._stopped = stopped
        self._parts = (loop, config, sockets.admin, reporting)
        self._admin = AdminWorker(*self._parts, stopped) if is_wanted(config.admin) else None
        self._unwanted: AdminWorker | None = None
        """One that an earlier program of this process had, and this one has not."""

    @property
    def fleets(self) -> list[Fleet]:
        """The fleets of processes that are not the application's."""
        return [admin.fleet for admin in (self._admin, self._unwanted) if admin is not None]

    def start(self) -> None:
        """Begin, before the application does: probes are answered from the first moment."""
        if self._admin is not None:
            self._admin.start()
            if self._config.admin.bind:
                logger.info("admin listens on %s", self._admin.describe())

    def configure(self, config: Config) -> None:
        """Go by another configuration: a reload has brought it."""
        self._config = config
        if self._admin is not None:
            self._admin.reload(config)

    def stop(self) -> None:
        """End, after the application has; at once when asked again."""
        if self._admin is None:
            self._stopped()
        else:
            self._admin.stop()

    def tell(self, message: Message) -> None:
        """Tell what concerns every process of the server."""
        if self._admin is not None:
            self._admin.tell(message)

    def abandon(self) -> None:
        """Kill what is left, after an error of our own."""
        for admin in (self._admin, self._unwanted):
            if admin is not None:
                admin.abandon()

    # A takeover

    def to_state(self) -> dict[str, Any]:
        """Describe it to the next program of this process."""
        return {"admin": None if self._admin is None else self._admin.to_state()}

    def inherited_fds(self) -> list[int]:
        """Return the descriptors that `to_state` names."""
        return [] if self._admin is None else self._admin.inherited_fds()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with what `to_state` described."""
        known = state.get("admin")
        if known and self._admin is None:
            self._unwanted = AdminWorker(*self._parts, lambda: None)
            self._unwanted.end(known)
        elif known and self._admin is not None:
            self._admin.resume(known)
        else:
            self.start()

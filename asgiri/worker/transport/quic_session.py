"""The session of one QUIC connection: what the endpoint and HTTP have to know of each other."""

from __future__ import annotations

import logging
from typing import Any, Final, Protocol, cast

from asgiri.worker.asgi.request import HttpRequest
from asgiri.worker.asgi.scope import Address
from asgiri.worker.protocol.events import HttpEngine, RequestReceived
from asgiri.worker.protocol.http3 import Http3Connection
from asgiri.worker.transport.deadlines import NEVER
from asgiri.worker.transport.services import WorkerServices
from asgiri.worker.transport.session import HttpSession

logger = logging.getLogger("asgiri.worker")

CHECK_PERIOD: Final = 1.0
"""How often a connection with open requests is looked at for those that do not move."""


class SessionOwner(Protocol):
    """The endpoint, as its sessions see it."""

    def touch(self, session: QuicSession) -> None:
        """Something may have to be sent: soon, with all that comes up until then."""

    def handshake_timed_out(self, session: QuicSession) -> None:
        """Forget the connection."""


class QuicSession(HttpSession):
    """One QUIC connection, from its first Initial on."""

    __slots__ = (
        "_endpoint",
        "connection_ids",
        "deadline",
        "engine",
        "is_half_open",
        "is_touched",
        "peer",
        "timer_at",
        "timer_entry",
        "tls",
    )

    def __init__(
        self,
        endpoint: SessionOwner,
        services: WorkerServices,
        engine: Http3Connection,
        peer: bytes,
        client: Address,
        server: Address,
    ) -> None:
        self.tls: dict[str, Any] = {}
        """Value of the scope's `tls` extension; filled in when the handshake is complete."""
        scopes = services.scopes.connection(client=client, server=server, secure=True, tls=self.tls)
        # HttpSession calls what the engines have in common; bytes in and out are the transport's.
        super().__init__(services, cast(HttpEngine, engine), scopes)
        self._endpoint = endpoint
        self.engine = engine
        self.peer = peer
        """Where it was heard from last, as records have it."""
        self.connection_ids: set[bytes] = set()
        self.is_half_open = True
        self.is_touched = False
        self.timer_at = NEVER
        self.timer_entry = NEVER
        self.deadline = services.now() + services.config.http3.handshake_timeout

    def moved(self, peer: bytes, client: Address, server: Address) -> None:
        """The client has another address: requests from here on say so."""
        self.peer = peer
        self._scopes = self._services.scopes.connection(
            client=client, server=server, secure=True, tls=self.tls
        )

    def timer_reached(self, now: float) -> None:
        """Called by `Timers`."""
        self.handle_events(self.engine.handle_timer(now))
        self._endpoint.touch(self)

    def deadline_reached(self, now: float) -> None:
        """Called by `Deadlines`: the handshake takes too long, or it is time to look for what does
        not move."""
        self.deadline = NEVER
        if self.is_half_open:
            self._endpoint.handshake_timed_out(self)
            return
        config = self._services.config.http1
        engine = self.engine
        body_patience = config.body_timeout or NEVER
        self.handle_events(
            engine.drop_stalled(
                now, head_patience=config.header_timeout or NEVER, send_patience=body_patience
            )
        )
        for stream_id, exchange in list(self._exchanges.items()):
            if isinstance(exchange, HttpRequest):
                since = exchange.body_awaited_since
                if since is not None and now - since >= body_patience:
                    self.handle_events(engine.time_out(stream_id))
        if engine.is_waiting:
            self.deadline = now + CHECK_PERIOD
        self._flush()

    def look_after(self, now: float) -> None:
        """Something is open: see to it that it does not stay so for ever."""
        self.deadline = min(self.deadline, now + CHECK_PERIOD)

    def _begin_exchange(self, event: RequestReceived) -> None:
        if not self._exchanges:
            self.look_after(self._services.now())
        super()._begin_exchange(event)

    def _flush(self) -> None:
        if self.engine.output_is_due:
            self._endpoint.touch(self)

    def _end(self, reason: str) -> None:
        logger.debug("QUIC connection ended: %s", reason)
        self._endpoint.touch(self)

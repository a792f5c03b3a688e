"""What every version of HTTP over TCP shares: one transport, how it ends, and who waits for what.

The end. An answer to a request that we did not read to its end (400, 408, 413 ...) is lost when we
close: the system answers what still arrives with RST, and RST throws away what the peer has not
read yet. So we close our side only, and read and forget what comes until the peer closes too, for a
limited time (RFC 9112 §9.6).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import fcntl
import termios
from collections.abc import Callable
from typing import Final

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.asgi.scope import ConnectionScope
from asgiri.worker.protocol.events import HttpEngine
from asgiri.worker.transport.deadlines import NEVER
from asgiri.worker.transport.direct import DirectProtocol
from asgiri.worker.transport.services import WorkerServices
from asgiri.worker.transport.session import HttpSession

LINGER_TIMEOUT: Final = 2.0
"""How long we wait for the peer to close after we did. It has our answer after one round trip; more
is courtesy.
"""
WRITE_CHECK_PERIOD: Final = 1.0
"""How often we look whether a peer that lets us wait has taken some of what we send."""


class Stage(enum.Enum):
    """How far a connection has come."""

    OPEN = enum.auto()
    LINGERING = enum.auto()
    """Our side is closed, what the peer still sends is thrown away."""
    CLOSING = enum.auto()
    """The transport sends what is left in its buffer, then it is gone."""
    LEFT = enum.auto()
    """Another session has taken over."""


class TcpConnection(HttpSession, DirectProtocol):
    """An open connection. A subclass per version sets `deadline` and says what happens when it has
    passed.
    """

    __slots__ = (
        "_closed",
        "_reading_paused",
        "_secure",
        "_stage",
        "_stalled_since",
        "_transport",
        "_unwritten",
        "_write_timeout",
        "deadline",
    )

    def __init__(
        self,
        services: WorkerServices,
        engine: HttpEngine,
        scopes: ConnectionScope,
        transport: asyncio.Transport,
        closed: Callable[[], None],
    ) -> None:
        """Take over the transport of an adopted connection; `closed` is called once, when it is
        lost.
        """
        super().__init__(services, engine, scopes)
        self._transport = transport
        self._closed = closed
        self._secure = transport.get_extra_info("ssl_object") is not None
        self._stage = Stage.OPEN
        self._reading_paused = False
        self._unwritten = 0
        """Size of the transport's buffer when it was last looked at."""
        self._stalled_since = 0.0
        # How long the peer may take nothing of what we send: the same patience as for what it
        # sends.
        self._write_timeout = services.config.http1.body_timeout or NEVER
        self.deadline = NEVER
        self._set_write_marks()
        services.deadlines.add(self)

    def _set_write_marks(self) -> None:
        flow = self._services.config.flow
        self._transport.set_write_buffer_limits(flow.high_water, flow.low_water)

    # asyncio.Protocol; pause_writing and resume_writing are HttpSession's

    def go_on_with(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        if self._reading_paused:
            # uvloop begins to read after this call, whatever is said before it returns.
            self._services.loop.call_soon(self._pause_again)

    def _pause_again(self) -> None:
        if self._reading_paused and self._stage is Stage.OPEN:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stage = Stage.CLOSING  # uvloop's transports raise when they are used from here on
        self._services.deadlines.discard(self)
        self._closed()
        self.connection_gone()

    def _leave(self) -> None:
        """Another session goes on with the transport."""
        self._stage = Stage.LEFT
        self._services.deadlines.discard(self)
        self._services.sessions.pop(self, None)

    # The end

    def _end(self, reason: str) -> None:
        self._flush()
        if self._stage is not Stage.OPEN:
            return
        if self._secure:
            # asyncio sends close_notify and reads on until the peer has sent its own; but it gives
            # both and the rest of what is written a fixed time, so the rest goes first.
            if self._transport.get_write_buffer_size():
                self._linger(0.0)
            else:
                self._close_transport()
        elif self._more_may_come():
            self._linger(LINGER_TIMEOUT)
            # A peer that has reset the connection leaves nothing to be shut down.
            with contextlib.suppress(OSError):
                self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._close_transport()

    def _abort(self, reason: str) -> None:
        self._stage = Stage.CLOSING
        self.deadline = NEVER
        self._transport.abort()

    def _more_may_come(self) -> bool:
        """Whether the peer sends more than we have read. A subclass may know without asking the
        system.
        """
        return self._has_unread_bytes()

    def _has_unread_bytes(self) -> bool:
        """Whether bytes wait in the socket. To ask before closing an idle connection makes the race
        smaller that HTTP/1.1 cannot avoid: a request on its way while the server closes (RFC 9112
        §9.5).
        """
        fd = self._transport.get_extra_info("socket").fileno()
        return fd >= 0 and any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))

    def _linger(self, seconds: float) -> None:
        self._stage = Stage.LINGERING
        self.deadline = self._services.now() + seconds

    def _close_transport(self) -> None:
        self._stage = Stage.CLOSING
        self.deadline = self._services.now() + WRITE_CHECK_PERIOD
        self._transport.close()

    # Deadlines

    def deadline_reached(self, now: float) -> None:
        """Called by the sweep of `Deadlines`."""
        if self._transport.get_write_buffer_size():
            self._check_writing(now)
        elif self._stage is Stage.OPEN:
            self._timed_out(now)
        elif self._stage is Stage.LINGERING:
            self._close_transport()
        else:
            self.deadline = NEVER

    def _timed_out(self, now: float) -> None:
        """The deadline of an open connection has passed, and all that was written has left."""
        raise NotImplementedError

    def _check_writing(self, now: float) -> None:
        """Go on waiting while the peer takes what we send; else give it up."""
        size = self._transport.get_write_buffer_size()
        if size != self._unwritten:
            self._unwritten = size
            self._stalled_since = now
        elif now - self._stalled_since >= self._write_timeout:
            self._services.scoreboard.refuse(Refusal.WRITE_TIMEOUT)
            self._abort("the peer takes nothing of what it is sent")
            return
        self.deadline = now + min(WRITE_CHECK_PERIOD, self._write_timeout)

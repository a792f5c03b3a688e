"""HTTP/1.1 and 1.0 over TCP: reads and writes at once, holds the peer back by not reading, and
waits for it only so long.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from typing import Final

from asgiri.errors import ClientDisconnected
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.asgi.request import HttpRequest
from asgiri.worker.asgi.scope import ConnectionScope
from asgiri.worker.asgi.waiting import Waiters
from asgiri.worker.protocol.events import PeerViolation, RequestReceived
from asgiri.worker.protocol.http1 import Http1Connection, Http1Phase
from asgiri.worker.transport.connection import Stage, TcpConnection
from asgiri.worker.transport.deadlines import NEVER
from asgiri.worker.transport.direct import DirectTransport
from asgiri.worker.transport.flow import ReceiveBacklog
from asgiri.worker.transport.http2 import Http2Session
from asgiri.worker.transport.sendfile import FileSending, SendTimeoutError
from asgiri.worker.transport.services import WorkerServices

DRAIN_GRACE: Final = 1.0
"""How long ago a keep-alive connection may have been used to be kept when the worker drains: its
client probably sends another request, which is answered with `connection: close`. Closing under it
would make that request fail.
"""

H2C_MAX_BODY: Final = 65536
"""Longest body of a request that waits to be upgraded to HTTP/2, which must have all of it first
(RFC 7540 §3.2). A longer one is served by HTTP/1.1 as it comes."""

SwitchToHttp2 = Callable[[bytes], Http2Session | None]
"""Makes the session that goes on with the connection, from HTTP2-Settings; None if they are wrong.
"""

GiveBack = Callable[[int, float], bool]
"""Gives a descriptor to the master, and says which part of its keep-alive time is over; see
`handback`."""

WAITING: Final = Http1Phase.WAITING
HEAD: Final = Http1Phase.HEAD
BODY: Final = Http1Phase.BODY
RESPONDING: Final = Http1Phase.RESPONDING
TUNNEL: Final = Http1Phase.TUNNEL
OPEN: Final = Stage.OPEN


class Http1Session(TcpConnection):
    """One connection. The deadline follows the engine's phase."""

    __slots__ = (
        "_armed_phase",
        "_backlog",
        "_drain_due",
        "_drained",
        "_file",
        "_hand_back",
        "_held",
        "_held_parts",
        "_http1",
        "_request_open",
        "_switch_to_http2",
    )

    def __init__(
        self,
        services: WorkerServices,
        engine: Http1Connection,
        scopes: ConnectionScope,
        transport: asyncio.Transport,
        closed: Callable[[], None],
        *,
        head_deadline: float,
        switch_to_http2: SwitchToHttp2 | None = None,
        hand_back: GiveBack | None = None,
    ) -> None:
        """`head_deadline`: when the first head must be complete; it counts from accept.
        `switch_to_http2` is given where the peer may upgrade, `hand_back` where the connection has
        no state beyond the kernel's (no TLS).
        """
        super().__init__(services, engine, scopes, transport, closed)
        self._http1 = engine
        self._switch_to_http2 = switch_to_http2
        self._hand_back = hand_back
        self._held: RequestReceived | None = None
        """A request that goes on as HTTP/2 once its body is complete."""
        self._held_parts: list[bytes] = []
        self._file: FileSending | None = None
        self._drained: Waiters | None = None  # made when a file waits for it
        self._backlog = ReceiveBacklog(services.config.flow)
        self._armed_phase = HEAD
        """What `deadline` waits for the end of."""
        self.deadline = head_deadline
        self._request_open = False
        """The peer has more to send of what we shall not read."""
        self._drain_due = services.draining and not self.is_wanted_back
        """The engine is to be told with the next request; told while it waits, it would end."""

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        if self._stage is Stage.OPEN:
            events = self._http1.receive_data(data)
            if self._drain_due and self._http1.phase is not WAITING:
                self._drain_due = False
                self._http1.begin_drain()
            self.handle_events(events)
            # What the engine answers by itself ends the connection, and has been flushed by that.
            if self._stage is Stage.OPEN:
                self._arm()

    def eof_received(self) -> bool:
        """Keep the transport when the peer still waits for an answer; TLS cannot."""
        if self._stage is not Stage.OPEN:
            return False
        self.handle_events(self._http1.receive_eof())
        self._flush()
        return self._stage is Stage.OPEN and not self._secure

    # HttpSession

    def _flush(self) -> None:
        if self._stage is not Stage.OPEN:
            return
        buffers = self._http1.buffers_to_send()
        if buffers:
            transport = self._transport
            if transport.is_closing():
                # Lost, which we are told on the loop's next turn; an application that writes on
                # and on would not let that come.
                self._tell_disconnected()
            elif len(buffers) == 1:
                transport.write(buffers[0])
            else:
                transport.writelines(buffers)
                # asyncio's writelines (3.12 to 3.13) does not look whether the buffer is above its
                # mark; this does.
                self._set_write_marks()
        if not self._handling:
            self._arm()

    def _more_may_come(self) -> bool:
        # An answer before the end of the request; or a request that the peer sent without waiting.
        return self._request_open or self._has_unread_bytes()

    def _begin_exchange(self, event: RequestReceived) -> None:
        self._request_open = not event.ended
        # Who waits for 100 (Continue) would have to be told before 101: it gets an answer sooner.
        if self._switch_to_http2 is None or event.expects_continue or not self._hold(event):
            super()._begin_exchange(event)

    def _body_received(self, stream_id: int, data: bytes, credit: int, *, ended: bool) -> None:
        if self._held is not None:
            self._held_parts.append(data)
            if sum(map(len, self._held_parts)) <= H2C_MAX_BODY:
                if ended:
                    self._upgrade(self._held)
                return
            data = self._stop_holding(self._held)
            credit = len(data)
        self._backlog.add(credit)
        super()._body_received(stream_id, data, credit, ended=ended)

    def _body_ended(self, stream_id: int) -> None:
        self._request_open = False
        if self._held is not None:
            self._upgrade(self._held)
        else:
            super()._body_ended(stream_id)

    def _violation(self, event: PeerViolation) -> None:
        self._request_open = True
        super()._violation(event)

    def acknowledge(self, stream_id: int, credit: int) -> None:
        self._backlog.take(credit)
        if self._reading_paused:
            self._update_reading()

    def exchange_ended(self, stream_id: int) -> None:
        # HttpSession's without the call of `release`, which has nothing to do in HTTP/1.1.
        del self._exchanges[stream_id]
        if self._gone:
            self._forget_if_finished()

    def send_tunnel(self, stream_id: int, parts: list[bytes]) -> None:
        # HttpSession's without the engine, which adds nothing to a tunnel and has nothing queued:
        # a third less for a message to each of 1,000 WebSockets.
        if self._stage is OPEN and self._http1.phase is TUNNEL:
            if len(parts) == 1:
                self._transport.write(parts[0])
            else:
                self._transport.writelines(parts)
                self._set_write_marks()

    # Files

    @property
    def sends_files(self) -> bool:  # type: ignore[override]
        """Not through TLS, which encrypts."""
        return not self._secure and hasattr(os, "sendfile")

    async def send_file(
        self, stream_id: int, file: int, offset: int, count: int, *, ended: bool
    ) -> None:
        if self._http1.begin_file(stream_id, count):
            self._flush()
            try:
                await self._send_file(file, offset, count)
            except SendTimeoutError:
                self._services.scoreboard.refuse(Refusal.WRITE_TIMEOUT)
                self._abort("the peer takes nothing of a file")
                raise ClientDisconnected("the client takes nothing") from None
            except ClientDisconnected:
                # What the system told the sending it does not tell the transport again.
                self._abort("the client has gone")
                raise
        self._take(self._http1.end_file(stream_id, ended=ended))

    async def _send_file(self, file: int, offset: int, count: int) -> None:
        transport = self._transport
        drained = self._drained = self._drained or Waiters(self._services.loop)
        # What is written must have left. A mark of 0 makes the transport tell when it has.
        transport.set_write_buffer_limits(0)
        try:
            while transport.get_write_buffer_size() and self._stage is Stage.OPEN:
                await drained.wait()
            if self._stage is not Stage.OPEN:
                raise ClientDisconnected("the client has gone")
            self._file = FileSending(
                transport.get_extra_info("socket").fileno(),
                file,
                loop=self._services.loop,
                threads=self._services.requests.files.threads,
                patience=self._write_timeout if math.isfinite(self._write_timeout) else None,
            )
            await self._file.run(offset, count)
        finally:
            self._file = None
            if self._stage is Stage.OPEN:
                self._set_write_marks()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._drained is not None:
            self._drained.wake()

    def go_on_with(self, transport: asyncio.Transport) -> None:
        super().go_on_with(transport)
        if self.is_wanted_back:
            # The answer may have been complete already.
            self._services.loop.call_soon(self.hand_back_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_file()
        super().connection_lost(exc)

    def _end(self, reason: str) -> None:
        self._stop_file()
        super()._end(reason)

    def _abort(self, reason: str) -> None:
        self._stop_file()
        super()._abort(reason)

    def _stop_file(self) -> None:
        if self._drained is not None:
            self._drained.wake()
        if self._file is not None:
            self._file.stop()

    # The upgrade to HTTP/2

    def refuse(self) -> None:
        """End the connection: the configuration does not allow this version."""
        self.handle_events(self._http1.refuse_version())
        self._flush()

    def _hold(self, request: RequestReceived) -> bool:
        """Go on with it as HTTP/2, if it asks for that; at the end of its body, if it has one."""
        if self._http1.h2c_settings is None:
            return False
        self._held = request
        if request.ended:
            self._upgrade(request)
        return True

    def _stop_holding(self, request: RequestReceived) -> bytes:
        """Serve it by HTTP/1.1 after all; return what has come of its body."""
        self._held = None
        body = b"".join(self._held_parts)
        self._held_parts.clear()
        super()._begin_exchange(request)
        return body

    def _upgrade(self, request: RequestReceived) -> None:
        settings = self._http1.h2c_settings
        assert self._switch_to_http2 is not None
        assert settings is not None
        session = self._switch_to_http2(settings)
        if session is None:
            body = self._stop_holding(request)
            if not request.ended:
                stream_id = request.stream_id
                self._backlog.add(len(body))
                super()._body_received(stream_id, body, len(body), ended=True)
            return
        pending = self._http1.switch_to_h2c(request.stream_id)
        self._flush()
        self._leave()
        self._transport.set_protocol(session)
        session.begin_upgraded(request, self._held_parts)
        session.data_received(pending)

    # Waiting

    def _arm(self) -> None:
        """The engine may be in another phase: wait for what comes next, and read only if there is
        room.
        """
        phase = self._http1.phase
        config = self._services.config.http1
        if phase is WAITING:
            self.deadline = self._services.now() + config.keep_alive
            if self.is_wanted_back and type(self._transport) is not DirectTransport:
                # When what is written has left: uvloop writes at the end of its turn.
                self._services.loop.call_soon(self.hand_back_if_idle)
        elif phase is not HEAD:
            self.deadline = self._services.now() + self._write_timeout
        elif self._armed_phase is not HEAD:
            self.deadline = self._services.now() + config.header_timeout
        self._armed_phase = phase
        # In the others nothing waits for the application.
        if self._reading_paused or (phase is not WAITING and phase is not HEAD):
            self._update_reading()

    def _update_reading(self) -> None:
        paused = self._backlog.is_full or self._http1.is_reading_paused
        if paused is not self._reading_paused and self._stage is Stage.OPEN:
            self._reading_paused = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _timed_out(self, now: float) -> None:
        phase = self._http1.phase
        if phase is BODY:
            since = self._body_awaited_since()
            timeout = self._services.config.http1.body_timeout or NEVER
            if since is None or since + timeout > now:
                self.deadline = (now if since is None else since) + timeout
                return
        elif phase is WAITING:
            if self._has_unread_bytes():
                return  # a request has just come; the loop reads it before the next sweep
        elif phase is not HEAD:
            self.deadline = now + self._write_timeout
            return
        self.handle_events(self._http1.send_timeout())
        self._flush()

    def _body_awaited_since(self) -> float | None:
        """Since when the application, or the engine that throws a rest away, waits for the peer."""
        for exchange in self._exchanges.values():
            if isinstance(exchange, HttpRequest):
                return exchange.body_awaited_since
        return self.deadline - self._write_timeout

    # Handing back

    @property
    def is_wanted_back(self) -> bool:
        hand_back = self._services.hand_back
        return self._hand_back is not None and hand_back is not None and hand_back.wanted

    def hand_back_if_idle(self) -> None:
        """Give the connection to the master, unless a byte of it is still to be dealt with here."""
        if (
            self._hand_back is None
            or self._stage is not Stage.OPEN
            or self._http1.phase is not WAITING
            or self._transport.get_write_buffer_size()
        ):
            return
        # First, so that nothing comes between the look and the handing over.
        self._transport.pause_reading()
        fd = self._transport.get_extra_info("socket").fileno()
        if self._hand_back(fd, self._idle_share()):
            self._closed = _counted_by_hand_back
            self._abort("handed back")
            return
        self._transport.resume_reading()
        if self._services.draining:
            self._drain_here()

    def _idle_share(self) -> float:
        keep_alive = self._services.config.http1.keep_alive
        left = self.deadline - self._services.now()
        return 1.0 - left / keep_alive if keep_alive else 0.0

    # Drain

    def begin_drain(self) -> None:
        if self.is_wanted_back:
            # Nothing to tell the client: another worker serves its next request.
            self.hand_back_if_idle()
            return
        if self._http1.phase is not WAITING:
            super().begin_drain()
            return
        self._drain_here()

    def _drain_here(self) -> None:
        # Not at once, and not in `finish_drain`: see DRAIN_GRACE.
        self._drain_due = True
        unused_for = self._services.config.http1.keep_alive - DRAIN_GRACE
        soon = max(self._services.now(), self.deadline - unused_for)
        self.deadline = min(self.deadline, soon)

    def finish_drain(self) -> None:
        """Nothing to do: the open exchange or the deadline ends the connection."""


def _counted_by_hand_back() -> None:
    pass

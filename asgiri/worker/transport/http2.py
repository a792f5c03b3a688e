"""HTTP/2 over TCP: answers once per batch of frames, and waits for a peer only so long.

Writing. Whatever applications send within one turn of the loop leaves in one write at its end, or
behind the frames that were just read. While the transport's buffer is full bodies stay in the
engine, where they can still be overtaken; heads and answers to the peer's frames go to the
transport, and once those alone fill it, nothing more is read: a peer that takes no answers gets to
ask no more questions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.asgi.request import HttpRequest
from asgiri.worker.asgi.scope import ConnectionScope
from asgiri.worker.protocol.events import BodyReceived, RequestReceived
from asgiri.worker.protocol.http2 import Http2Connection
from asgiri.worker.protocol.http2_sending import WRITE_BUDGET
from asgiri.worker.transport.connection import Stage, TcpConnection
from asgiri.worker.transport.deadlines import NEVER
from asgiri.worker.transport.services import WorkerServices

CHECK_PERIOD: Final = 1.0
"""How often streams that are open are looked at: stalled ones, bodies that do not come."""
MAX_UNREAD_ANSWERS: Final = 262144
"""Bytes of heads and control frames that a peer may leave unread, on top of the marks of the
transport's buffer, before we stop reading. Answers to 100 requests with heads of 2 KiB."""
PING: Final = b"asgiri\x00\x00"


class Http2Session(TcpConnection):
    """One connection."""

    __slots__ = (
        "_heard_at",
        "_http2",
        "_idle_since",
        "_peer_closed",
        "_pinged",
        "_write_due",
    )

    def __init__(
        self,
        services: WorkerServices,
        engine: Http2Connection,
        scopes: ConnectionScope,
        transport: asyncio.Transport,
        closed: Callable[[], None],
    ) -> None:
        super().__init__(services, engine, scopes, transport, closed)
        self._http2 = engine
        self._write_due = False
        self._peer_closed = False
        self._pinged = False
        self._heard_at = self._idle_since = services.now()
        self.deadline = self._next_deadline(self._heard_at)

    # For the endpoint: how a connection begins

    def begin(self) -> None:
        """Send the server's preface. To be called once the transport's events come here."""
        if self._services.draining:
            self._http2.begin_drain()
        self._write()

    def begin_upgraded(self, request: RequestReceived, body: Sequence[bytes]) -> None:
        """Go on with a request of HTTP/1.1, whose body is complete, as stream 1."""
        event = self._http2.begin_upgraded(request)
        self.begin()
        joined = b"".join(body)
        self.handle_events([event, *_body_events(event, joined)])
        self._write()

    def refuse(self) -> None:
        """End the connection: the configuration does not allow this version."""
        self.handle_events(self._http2.refuse())

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        if self._stage is not Stage.OPEN:
            return
        self._heard_at = self._services.now()
        self._pinged = False
        self.handle_events(self._http2.receive_data(data))
        self._write()

    def eof_received(self) -> bool:
        self._peer_closed = True
        if self._stage is Stage.OPEN:
            self.handle_events(self._http2.receive_eof())
        return False

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stage is not Stage.OPEN:
            return
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        self._write()

    # HttpSession

    def _flush(self) -> None:
        if not self._write_due and not self._handling and self._stage is Stage.OPEN:
            self._write_due = True
            services = self._services
            # In the worker's own context: what it reports may start an application.
            services.loop.call_soon(self._write, context=services.requests.application.context)

    def _write(self) -> None:
        """Give the transport what it takes."""
        self._write_due = False
        if self._stage is not Stage.OPEN:
            return
        engine, transport = self._http2, self._transport
        while not self._writing_paused and (data := engine.data_to_send()):
            transport.write(data)
        if self._writing_paused and (data := engine.control_to_send()):
            transport.write(data)
            self._limit_answers()
        if events := engine.sent_events():
            self.handle_events(events)

    def _limit_answers(self) -> None:
        limit = self._services.config.flow.high_water + WRITE_BUDGET + MAX_UNREAD_ANSWERS
        if not self._reading_paused and self._transport.get_write_buffer_size() > limit:
            self._reading_paused = True
            self._transport.pause_reading()
            self._services.scoreboard.refuse(Refusal.HTTP2_OUTPUT_LIMIT)

    def _end(self, reason: str) -> None:
        self._write()
        super()._end(reason)

    def _more_may_come(self) -> bool:
        # A peer that has not seen our GOAWAY yet goes on sending, and be it WINDOW_UPDATE.
        return not self._peer_closed

    def _begin_exchange(self, event: RequestReceived) -> None:
        if not self._exchanges:
            self.deadline = min(self.deadline, self._services.now() + CHECK_PERIOD)
        super()._begin_exchange(event)

    def exchange_ended(self, stream_id: int) -> None:
        super().exchange_ended(stream_id)
        if not self._exchanges:
            self._idle_since = self._services.now()

    # Waiting

    def _next_deadline(self, now: float) -> float:
        config = self._services.config.http2
        if self._exchanges or not self._http2.is_idle:
            return now + CHECK_PERIOD
        deadline = self._idle_since + (config.idle_timeout or NEVER)
        if config.ping_interval:
            patience = 2 * config.ping_interval if self._pinged else config.ping_interval
            deadline = min(deadline, self._heard_at + patience)
        return deadline

    def _timed_out(self, now: float) -> None:
        config = self._services.config
        if self._exchanges or not self._http2.is_idle:
            self.handle_events(self._http2.drop_stalled(self._write_timeout))
            self._drop_waiting(now - (config.http1.body_timeout or NEVER))
        elif self._idle_since + (config.http2.idle_timeout or NEVER) <= now:
            self.close()
            return
        if not self._is_alive(now, config.http2.ping_interval):
            self._services.scoreboard.refuse(Refusal.HTTP2_PING_TIMEOUT)
            self._abort("no answer to a PING")
            return
        self.deadline = self._next_deadline(now)
        self._write()

    def _drop_waiting(self, since: float) -> None:
        """End the requests whose applications have waited for the body since then."""
        for stream_id, exchange in list(self._exchanges.items()):
            if isinstance(exchange, HttpRequest):
                awaited_since = exchange.body_awaited_since
                if awaited_since is not None and awaited_since <= since:
                    self.handle_events(self._http2.time_out(stream_id))

    def _is_alive(self, now: float, ping_interval: float) -> bool:
        silence = now - self._heard_at
        if not ping_interval or silence < ping_interval:
            return True
        if self._pinged:
            return silence < 2 * ping_interval
        self._pinged = True
        self._http2.send_ping(PING)
        return True


def _body_events(request: RequestReceived, body: bytes) -> list[BodyReceived]:
    if request.ended:
        return []
    # No credit: HTTP/2's windows know nothing of these bytes.
    return [BodyReceived(request.stream_id, body, 0, ended=True)]

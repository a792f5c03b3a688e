"""The part of a connection that TCP and QUIC share: events of an engine to exchanges, and back.

An exchange is one ASGI call. A session owns the exchanges of its connection, is the `ResponseSink`
they answer through, and leaves two things to its subclass: how bytes leave (`_flush`) and how the
connection ends (`_end`).

Re-entrance. Applications start eagerly, inside `handle_events`, and their `send()` calls the
engine, which may report events of its own (a pipelined request, the end of the connection). Those
are put in line behind the events being handled, so that an application is never started inside
another one's `send()`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.asgi.request import HttpRequest
from asgiri.worker.asgi.scope import ConnectionScope
from asgiri.worker.asgi.types import Exchange
from asgiri.worker.asgi.websocket import WebSocketSession
from asgiri.worker.protocol.events import (
    BodyEnded,
    BodyReceived,
    ConnectionEnded,
    Event,
    HalfClosed,
    Headers,
    HttpEngine,
    PeerViolation,
    RequestReceived,
    ResponseHead,
    StreamPaused,
    StreamReset,
    StreamResumed,
)
from asgiri.worker.protocol.headers import response_head
from asgiri.worker.protocol.websocket import VERSION, negotiate_untrusted
from asgiri.worker.transport.services import WorkerServices

logger = logging.getLogger("asgiri.worker")


class HttpSession:
    """One connection.

    The subclass gives what its engine reports to `handle_events`, flushes, and calls
    `connection_gone` once when the transport is lost.
    """

    __slots__ = (
        "__weakref__",
        "_deferred",
        "_engine",
        "_exchanges",
        "_gone",
        "_handling",
        "_paused_streams",
        "_scopes",
        "_services",
        "_shed",
        "_writing_paused",
        "number",
        "overdue",
    )

    def __init__(
        self, services: WorkerServices, engine: HttpEngine, scopes: ConnectionScope
    ) -> None:
        self._services = services
        self._engine = engine
        self._scopes = scopes
        self._exchanges: dict[int, Exchange] = {}
        self._deferred: deque[Event] = deque()
        self._handling = False
        self._gone = False
        self._shed = False
        self._writing_paused = False
        self.number = next(services.numbers)
        self.overdue = False
        """Its first request has waited too long in the master, and is refused."""
        self._paused_streams: set[int] = set()
        """Those whose own buffer is full; an exchange goes on when neither it nor the transport's
        is.
        """
        services.sessions[self] = None

    # For the subclass to define

    def _flush(self) -> None:
        """Something may be queued in the engine: send it now, or see to it that it is sent soon."""
        raise NotImplementedError

    def _end(self, reason: str) -> None:
        """The engine reads no more (`ConnectionEnded`): send what is queued, then close."""
        raise NotImplementedError

    def _abort(self, reason: str) -> None:
        """The same, but an orderly end could be taken for the end of the response."""
        self._end(reason)

    # For the subclass to call

    def handle_events(self, events: Sequence[Event]) -> None:
        """Carry out what the engine reported, in order. Does not flush."""
        if self._handling or self._deferred:
            self._deferred.extend(events)
            if self._handling:
                return
            events = ()
        self._handling = True
        try:
            for event in events:
                self._handle(event)
            while self._deferred:
                self._handle(self._deferred.popleft())
        finally:
            self._handling = False

    def connection_gone(self) -> None:
        """The transport is lost: nothing can be sent any more. The second call does nothing."""
        if self._gone:
            return
        self._gone = True
        self._deferred.clear()
        self._tell_disconnected()
        self._forget_if_finished()

    def _tell_disconnected(self) -> None:
        for exchange in list(self._exchanges.values()):
            exchange.disconnected()

    def pause_writing(self) -> None:
        """The transport's buffer is above its high-water mark: every exchange waits."""
        self._writing_paused = True
        for exchange in self._exchanges.values():
            exchange.pause_writing()

    def resume_writing(self) -> None:
        self._writing_paused = False
        for stream_id, exchange in list(self._exchanges.items()):
            if stream_id not in self._paused_streams:
                exchange.resume_writing()

    # For the worker's runtime to call

    @property
    def is_idle(self) -> bool:
        """No exchange is open, and no byte of a next one has come."""
        return not self._exchanges and self._engine.is_idle

    def shed(self) -> bool:
        """Begin to drain, so that the client comes again elsewhere; False when it was asked before,
        or has gone.
        """
        if self._shed or self._gone:
            return False
        self._shed = True
        self.begin_drain()
        return True

    def begin_drain(self) -> None:
        """Take no new exchanges soon; those that run go on."""
        self.handle_events(self._engine.begin_drain())
        for exchange in list(self._exchanges.values()):
            exchange.drain()
        self._flush()

    def finish_drain(self) -> None:
        """Take no new exchanges now (second GOAWAY); idle connections close."""
        self.handle_events(self._engine.finish_drain())
        if self.is_idle:
            self.close()
        else:
            self._flush()

    def close(self) -> None:
        """End the connection in order, telling the peer where its protocol can."""
        self.handle_events(self._engine.close())
        self._flush()

    def cancel_exchanges(self) -> None:
        """The worker's patience is over."""
        for exchange in list(self._exchanges.values()):
            exchange.cancel()

    # Events of the engine

    def _handle(self, event: Event) -> None:
        # Most exchanges have no other event, and this takes a third of the time of `match`.
        if type(event) is RequestReceived:
            self._begin_exchange(event)
            return
        match event:
            case BodyReceived(stream_id, data, credit, ended):
                self._body_received(stream_id, data, credit, ended=ended)
            case BodyEnded(stream_id):
                self._body_ended(stream_id)
            case HalfClosed(stream_id):
                if exchange := self._exchanges.get(stream_id):
                    exchange.half_closed()
            case StreamReset(stream_id):
                if exchange := self._exchanges.get(stream_id):
                    exchange.disconnected()
            case StreamPaused(stream_id):
                if exchange := self._exchanges.get(stream_id):
                    self._paused_streams.add(stream_id)
                    exchange.pause_writing()
            case StreamResumed(stream_id):
                self._paused_streams.discard(stream_id)
                if (exchange := self._exchanges.get(stream_id)) and not self._writing_paused:
                    exchange.resume_writing()
            case PeerViolation():
                self._violation(event)
            case ConnectionEnded(reason, abort):
                self._tell_disconnected()
                if abort:
                    self._abort(reason)
                else:
                    self._end(reason)

    def _begin_exchange(self, event: RequestReceived) -> None:
        if event.protocol == "websocket":
            self._begin_websocket(event)
            return
        exchange = HttpRequest(self, event, self._scopes.http_scope(event), self._services.requests)
        if self.overdue:
            self.overdue = False
            self._services.scoreboard.refuse(Refusal.CONCURRENCY_LIMIT)
            self._exchanges[event.stream_id] = exchange
            exchange.refuse()
            return
        self._start(event.stream_id, exchange)

    def _begin_websocket(self, event: RequestReceived) -> None:
        services = self._services
        config = services.config.websocket
        negotiation = negotiate_untrusted(
            event.headers,
            deflate=config.per_message_deflate,
            max_message_size=config.max_message_size,
        )
        if not negotiation.version_is_known:
            # HTTP/1.1 has answered 426 itself, which takes a field that HTTP/2 and 3 do not have.
            refusal, detail = Refusal.WEBSOCKET_BAD_HANDSHAKE, "sec-websocket-version"
            self._violation(PeerViolation(refusal, detail))
            headers = [(b"sec-websocket-version", VERSION), (b"content-length", b"0")]
            head = response_head(400, headers, defaults=services.requests.defaults)
            self.send_response(event.stream_id, head, b"", ended=True)
            self._take(self._engine.release(event.stream_id))
            return
        scope = self._scopes.websocket_scope(event, negotiation.subprotocols)
        exchange = WebSocketSession(self, event, scope, negotiation, services.websockets)
        self._start(event.stream_id, exchange)
        if services.draining:
            exchange.drain()

    def _start(self, stream_id: int, exchange: HttpRequest | WebSocketSession) -> None:
        self._exchanges[stream_id] = exchange
        if self._writing_paused:
            exchange.pause_writing()
        exchange.start()

    def _body_received(self, stream_id: int, data: bytes, credit: int, *, ended: bool) -> None:
        exchange = self._exchanges.get(stream_id)
        if exchange is None:
            # The application has returned; what still comes of the body is nobody's.
            self.acknowledge(stream_id, credit)
            return
        exchange.body_received(data, credit)
        if ended:
            self._body_ended(stream_id)

    def _body_ended(self, stream_id: int) -> None:
        if exchange := self._exchanges.get(stream_id):
            exchange.body_ended()

    def _violation(self, event: PeerViolation) -> None:
        self._services.scoreboard.refuse(event.reason)
        logger.debug("%s: %s", event.reason.name, event.detail)
        if event.stream_id is not None and (exchange := self._exchanges.get(event.stream_id)):
            exchange.disconnected()

    # ResponseSink

    def send_informational(self, stream_id: int, status: int, headers: Headers) -> None:
        self._take(self._engine.send_informational(stream_id, status, headers))

    def send_response(
        self, stream_id: int, head: ResponseHead, body: bytes, *, ended: bool
    ) -> None:
        # `_take`, but for the call that most exchanges could do without (60 ns).
        if events := self._engine.send_response(stream_id, head, body, ended=ended):
            self._take(events)
        else:
            self._flush()

    def send_body(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        self._take(self._engine.send_body(stream_id, data, ended=ended))

    def send_trailers(self, stream_id: int, headers: Headers) -> None:
        self._take(self._engine.send_trailers(stream_id, headers))

    sends_files = False

    async def send_file(
        self, stream_id: int, file: int, offset: int, count: int, *, ended: bool
    ) -> None:
        raise NotImplementedError

    def accept_tunnel(self, stream_id: int, headers: Headers) -> None:
        self._take(self._engine.accept_tunnel(stream_id, headers))

    def send_tunnel(self, stream_id: int, parts: list[bytes]) -> None:
        for part in parts:
            self.send_body(stream_id, part, ended=False)

    def reset_stream(self, stream_id: int) -> None:
        self._take(self._engine.reset_stream(stream_id))

    def acknowledge(self, stream_id: int, credit: int) -> None:
        self._take(self._engine.acknowledge(stream_id, credit))

    def exchange_ended(self, stream_id: int) -> None:
        del self._exchanges[stream_id]
        self._paused_streams.discard(stream_id)
        if self._gone:
            self._forget_if_finished()
        else:
            self._take(self._engine.release(stream_id))

    # Internals

    def _take(self, events: Sequence[Event]) -> None:
        """Take what a call on behalf of an exchange reported, then let its bytes leave."""
        for event in events:
            if type(event) is StreamPaused or type(event) is StreamResumed:
                self._handle(event)
            else:
                self._defer(event)
        self._flush()

    def _defer(self, event: Event) -> None:
        if not self._handling and not self._deferred:
            services = self._services
            # In the worker's own context: the caller's belongs to one exchange, the event may start
            # another.
            services.loop.call_soon(
                self._handle_deferred, context=services.requests.application.context
            )
        self._deferred.append(event)

    def _handle_deferred(self) -> None:
        self.handle_events(())
        self._flush()

    def _forget_if_finished(self) -> None:
        if not self._exchanges:
            self._services.sessions.pop(self, None)

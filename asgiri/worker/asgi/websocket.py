"""One WebSocket: the ASGI call on one side, the tunnel of a stream on the other.

Nothing is answered before the application accepts: until then the exchange is an HTTP request, and
a denial is its response. Afterwards frames are parsed only as fast as the application takes
messages, and bytes not yet parsed are not acknowledged: a peer who sends faster is held back by its
own window.

The closing handshake outlives the application's call: the exchange ends when both are over.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from asgiri.config import WebSocketConfig
from asgiri.errors import AppError, ClientDisconnected
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.asgi.request import RequestEnvironment
from asgiri.worker.asgi.types import Message, ResponseSink, Scope
from asgiri.worker.asgi.waiting import Waiters
from asgiri.worker.protocol.events import Headers, RequestReceived, ResponseHead
from asgiri.worker.protocol.headers import response_head, tunnel_fields
from asgiri.worker.protocol.websocket import (
    CloseReceived,
    MessageReceived,
    Negotiation,
    PingReceived,
    PongReceived,
    WebSocketCodec,
    WebSocketEvent,
    WebSocketViolation,
    close_code_is_valid,
)

logger = logging.getLogger("asgiri.worker")

ABNORMAL: Final = 1006
"""What the application hears when the peer goes without a close frame (RFC 6455 §7.1.5)."""
GOING_AWAY: Final = 1012
"""Service restart: the client may come back at once."""
INTERNAL_ERROR: Final = 1011


@dataclass(slots=True, eq=False)
class WebSocketEnvironment:
    """What the WebSockets of a worker share."""

    requests: RequestEnvironment
    config: WebSocketConfig
    refuse: Callable[[Refusal], None]
    random: Callable[[], float]
    """0 to 1: spreads the closing of many WebSockets over the time of a drain."""
    drain_spread: float
    """Seconds over which a drain closes them."""


class _Phase(enum.Enum):
    CONNECTING = enum.auto()
    """The application has neither accepted nor denied."""
    DENYING = enum.auto()
    """It has begun to answer with an HTTP response."""
    OPEN = enum.auto()
    CLOSING = enum.auto()
    """Our close frame is sent, the peer's is due."""
    CLOSED = enum.auto()
    """Nothing more is sent; what the peer still sends is not read."""


class WebSocketSession:
    """An `Exchange`. `start` runs the application; the rest is called by the session and by the
    application.
    """

    def __init__(
        self,
        sink: ResponseSink,
        request: RequestReceived,
        scope: Scope,
        negotiation: Negotiation,
        environment: WebSocketEnvironment,
    ) -> None:
        self._sink = sink
        self._stream_id = request.stream_id
        self._scope = scope
        self._negotiation = negotiation
        self._environment = environment
        self._common = environment.requests
        self._loop = self._common.loop
        self._started = self._common.now()
        self._task: asyncio.Task[None] | None = None
        self._returned = False
        self._cancelled = False
        self._phase = _Phase.CONNECTING
        self._tunnel_open = False
        # Receiving
        self._codec = WebSocketCodec(
            max_message_size=environment.config.max_message_size, deflate=negotiation.deflate
        )
        self._messages: deque[Message] = deque(({"type": "websocket.connect"},))
        self._early: list[bytes] = []
        self._credit = 0
        self._parsed = True
        self._peer_ended = False
        self._disconnect: Message | None = None
        self._told = False
        self._receivers = Waiters(self._loop)
        # Sending
        self._denial: ResponseHead | None = None
        self._denial_bytes = 0
        self._paused = False
        self._pong: bytes | None = None
        self._senders = Waiters(self._loop)
        # Timers: at most one at a time
        self._timer: asyncio.TimerHandle | None = None
        self._drain_timer: asyncio.TimerHandle | None = None
        self._heard = False
        self._common.counters.websocket_began()

    # Exchange: what the session calls

    def start(self) -> None:
        """Run the application, eagerly where Python can."""
        self._task = self._common.application.start(self._run())

    def body_received(self, data: bytes, credit: int) -> None:
        self._heard = True
        if self._phase is _Phase.CLOSED or self._phase is _Phase.DENYING:
            self._sink.acknowledge(self._stream_id, credit)
            return
        self._credit += credit
        if self._phase is _Phase.CONNECTING:
            self._early.append(data)
            return
        self._codec.receive_data(data)
        self._parsed = False
        self._parse()

    def body_ended(self) -> None:
        """The peer's side of the tunnel is over, with or without a close frame."""
        self._peer_ended = True
        if self._parsed and self._phase is not _Phase.CONNECTING:
            self._lose()

    def disconnected(self) -> None:
        self._tunnel_open = False
        self._lose()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._pong is not None and self._phase is _Phase.OPEN:
            pong, self._pong = self._pong, None
            self._write(self._codec.send_pong(pong))
        self._senders.wake()

    def drain(self) -> None:
        if self._environment.config.drain == "close" and self._drain_timer is None:
            # All at once would bring all of them back at once.
            delay = self._environment.random() * self._environment.drain_spread
            self._drain_timer = self._loop.call_later(delay, self._close_for_drain)

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._common.application.cancel(self._task)
        if self._phase is _Phase.CLOSING:
            self._close_timed_out()

    # What the application calls

    async def receive(self) -> Message:
        """ASGI `receive`: websocket.connect, the messages, then websocket.disconnect."""
        while True:
            if self._messages:
                message = self._messages.popleft()
                self._parse()
                return message
            if self._disconnect is not None:
                self._told = True
                return self._disconnect
            await self._receivers.wait()

    async def send(self, message: Message) -> None:
        """ASGI `send`. Raises ClientDisconnected (an OSError) once the peer is gone, AppError for a
        wrong message.
        """
        kind = message.get("type")
        if self._phase is _Phase.CLOSED and self._disconnect is not None:
            raise ClientDisconnected("the client has gone")
        if kind == "websocket.send" and self._phase is _Phase.OPEN:
            content = _content(message)
            if self._paused:
                await self._wait_writable()
            self._write(self._codec.send_message(content))
        elif kind == "websocket.accept" and self._phase is _Phase.CONNECTING:
            self._accept(message)
        elif kind == "websocket.close" and self._phase is _Phase.CONNECTING:
            # The specification: "the server must [...] send a HTTP 403".
            self._deny(403, b"Forbidden")
        elif kind == "websocket.close" and self._phase is _Phase.OPEN:
            code, reason = message.get("code", 1000), message.get("reason") or ""
            if not isinstance(code, int) or not close_code_is_valid(code):
                raise AppError(f"'code' must be a close code that may be sent, not {code!r}")
            self._close(code, reason)
        elif kind == "websocket.http.response.start" and self._phase is _Phase.CONNECTING:
            self._denial = response_head(
                message.get("status"), message.get("headers", ()), defaults=self._common.defaults
            )
            self._phase = _Phase.DENYING
        elif kind == "websocket.http.response.body" and self._phase is _Phase.DENYING:
            if self._paused:
                await self._wait_writable()
            self._send_denial(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise AppError(f"{kind!r} while the WebSocket is {self._phase.name.lower()}")

    # Opening

    def _accept(self, message: Message) -> None:
        subprotocol = message.get("subprotocol")
        headers = tunnel_fields(message.get("headers", ()))
        if subprotocol is not None:
            if subprotocol not in self._negotiation.subprotocols:
                raise AppError(f"subprotocol {subprotocol!r} is none that the client offered")
            headers.append((b"sec-websocket-protocol", subprotocol.encode("ascii")))
        if self._negotiation.extension_field is not None:
            headers.append((b"sec-websocket-extensions", self._negotiation.extension_field))
        headers += self._common.defaults.fields
        self._phase = _Phase.OPEN
        self._tunnel_open = True
        self._sink.accept_tunnel(self._stream_id, headers)
        self._log(101 if self._scope["http_version"] == "1.1" else 200, headers, 0)
        self._schedule_ping()
        for data in self._early:
            self._codec.receive_data(data)
        self._early.clear()
        self._parse()

    def _deny(self, status: int, text: bytes) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        headers.append((b"content-length", b"%d" % len(text)))
        self._denial = response_head(status, headers, defaults=self._common.defaults)
        self._phase = _Phase.DENYING
        self._send_denial(text, more=False)

    def _send_denial(self, body: bytes, *, more: bool) -> None:
        assert self._denial is not None
        if not self._denial_bytes and not self._tunnel_open:
            self._tunnel_open = True
            self._sink.send_response(self._stream_id, self._denial, body, ended=not more)
        else:
            self._sink.send_body(self._stream_id, body, ended=not more)
        self._denial_bytes += len(body)
        if not more:
            self._phase = _Phase.CLOSED
            self._tunnel_open = False
            self._log(self._denial.status, self._denial.headers, self._denial_bytes)
            self._give_credit()
            self._end_messages(ABNORMAL, "")

    # Receiving

    def _parse(self) -> None:
        """Take messages out of what has come while there is room for them."""
        if self._phase is not _Phase.OPEN and self._phase is not _Phase.CLOSING:
            return
        room = self._environment.config.max_queue
        while len(self._messages) < room:
            event = self._codec.next_event()
            if event is None:
                self._parsed = True
                self._give_credit()
                if self._peer_ended:
                    self._lose()
                return
            self._handle(event)

    def _handle(self, event: WebSocketEvent) -> None:
        match event:
            case MessageReceived(content):
                if self._phase is _Phase.OPEN:
                    key = "text" if isinstance(content, str) else "bytes"
                    self._messages.append({"type": "websocket.receive", key: content})
                    self._receivers.wake()
            case PingReceived(payload):
                if self._phase is _Phase.OPEN and not self._paused:
                    self._write(self._codec.send_pong(payload))
                else:
                    self._pong = payload  # the last one is enough (RFC 6455 §5.5.3)
            case PongReceived():
                pass  # every byte of the peer is a sign of life
            case CloseReceived(code, reason):
                self._close_received(code, reason)
            case WebSocketViolation(code, refusal, detail):
                self._environment.refuse(refusal)
                logger.debug("%s: %s", refusal.name, detail)
                if self._phase is _Phase.OPEN:
                    self._write(self._codec.send_close(code, detail))
                self._end(code, detail)

    def _close_received(self, code: int, reason: str) -> None:
        if self._phase is _Phase.OPEN:
            # RFC 6455 §5.5.1: "When sending a Close frame in response, the endpoint typically echos
            # the status code it received."
            self._write(self._codec.send_close(code))
        self._end(code, reason)

    def _give_credit(self) -> None:
        if self._credit:
            credit, self._credit = self._credit, 0
            self._sink.acknowledge(self._stream_id, credit)

    # Closing

    def _close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        self._phase = _Phase.CLOSING
        self._write(self._codec.send_close(code, reason))
        self._set_timer(self._environment.config.close_timeout, self._close_timed_out)
        self._messages.clear()
        self._end_messages(code, reason)
        # What waited for the application is not wanted any more, but the peer's close frame is
        # behind it.
        self._loop.call_soon(self._parse)

    def _close_for_drain(self) -> None:
        if self._phase is _Phase.OPEN:
            self._close(GOING_AWAY, "service restart")

    def _close_timed_out(self) -> None:
        self._environment.refuse(Refusal.WEBSOCKET_CLOSE_TIMEOUT)
        self._sink.reset_stream(self._stream_id)
        self._tunnel_open = False
        self._end(ABNORMAL, "")

    def _lose(self) -> None:
        """The peer has gone without a close frame, or after ours."""
        if self._phase is not _Phase.CLOSED:
            self._end(ABNORMAL, "")

    def _end(self, code: int, reason: str) -> None:
        """Both sides are done: end the tunnel, tell the application."""
        opened = self._phase in (_Phase.OPEN, _Phase.CLOSING)
        self._phase = _Phase.CLOSED
        self._cancel_timer()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        if self._tunnel_open and opened:
            self._tunnel_open = False
            self._sink.send_body(self._stream_id, b"", ended=True)
        self._early.clear()
        self._give_credit()
        self._end_messages(code, reason)
        self._senders.wake()
        self._end_exchange_if_over()

    def _end_messages(self, code: int, reason: str) -> None:
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
        self._receivers.wake()

    # Sending

    def _write(self, data: bytes) -> None:
        self._sink.send_body(self._stream_id, data, ended=False)

    async def _wait_writable(self) -> None:
        while self._paused and self._phase in (_Phase.OPEN, _Phase.DENYING):
            await self._senders.wait()
        if self._phase is _Phase.CLOSED:
            raise ClientDisconnected("the client has gone")
        if self._phase is _Phase.CLOSING:
            raise AppError("'websocket.send' while the WebSocket is closing")

    # Keep-alive

    def _schedule_ping(self) -> None:
        if interval := self._environment.config.ping_interval:
            self._set_timer(interval, self._ping_due)

    def _ping_due(self) -> None:
        config = self._environment.config
        self._heard = False
        if not self._paused:
            self._write(self._codec.send_ping(b"asgiri"))
        if config.ping_timeout:
            self._set_timer(config.ping_timeout, self._pong_due)
        else:
            self._set_timer(config.ping_interval, self._ping_due)

    def _pong_due(self) -> None:
        config = self._environment.config
        # Bytes that wait for the application are a sign of life too: the pong may be behind them.
        if self._heard or self._credit:
            self._set_timer(max(config.ping_interval - config.ping_timeout, 0.0), self._ping_due)
            return
        self._environment.refuse(Refusal.WEBSOCKET_PING_TIMEOUT)
        self._write(self._codec.send_close(INTERNAL_ERROR, "ping timeout"))
        self._end(ABNORMAL, "")

    def _set_timer(self, delay: float, callback: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(delay, callback)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The application's call

    async def _run(self) -> None:
        try:
            await self._common.application.call(self._scope, self.receive, self.send)
        except GeneratorExit:
            raise  # the event loop is being torn down, nothing can be sent
        except BaseException as error:
            self._call_raised(error)
        else:
            self._call_returned()
        self._returned = True
        self._end_exchange_if_over()

    def _call_raised(self, error: BaseException) -> None:
        if self._cancelled and isinstance(error, asyncio.CancelledError):
            code = GOING_AWAY
        elif self._disconnect is not None and isinstance(error, ClientDisconnected):
            return
        else:
            code = INTERNAL_ERROR
            self._common.counters.app_errors += 1
            logger.error("exception in the application", exc_info=error)
        self._give_up(code)

    def _call_returned(self) -> None:
        if self._phase is _Phase.CONNECTING or self._phase is _Phase.DENYING:
            self._common.counters.app_errors += 1
            logger.error("the application returned without accepting or denying the WebSocket")
            self._give_up(INTERNAL_ERROR)
        elif self._phase is _Phase.OPEN:
            self._close(1000, "")

    def _give_up(self, code: int) -> None:
        if self._phase is _Phase.CONNECTING or (
            self._phase is _Phase.DENYING and not self._tunnel_open
        ):
            self._deny(500, b"Internal Server Error")
        elif self._phase is _Phase.DENYING:
            self._tunnel_open = False
            self._sink.reset_stream(self._stream_id)
            self._end(ABNORMAL, "")
        elif self._phase is _Phase.OPEN:
            self._close(code, "")

    def _end_exchange_if_over(self) -> None:
        if self._returned and self._phase is _Phase.CLOSED:
            self._returned = False
            self._common.counters.websocket_ended()
            self._sink.exchange_ended(self._stream_id)

    def _log(self, status: int, headers: Headers, size: int) -> None:
        if self._common.access_log is not None:
            duration = self._common.now() - self._started
            self._common.access_log(self._scope, status, headers, size, duration)


def _content(message: Message) -> str | bytes:
    content: Any = message.get("bytes")
    if content is None:
        content = message.get("text")
        if not isinstance(content, str):
            raise AppError("'websocket.send' must carry 'bytes' or 'text'")
    elif not isinstance(content, bytes):
        if not isinstance(content, bytearray | memoryview):
            raise AppError(f"'bytes' must be bytes, not {type(content).__name__}")
        content = bytes(content)
    return content  # type: ignore[no-any-return]

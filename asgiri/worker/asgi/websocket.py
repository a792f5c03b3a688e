"""One WebSocket: the ASGI call on one side, the tunnel of a stream on the other.

Nothing is answered before the application accepts: until then the exchange is an HTTP request, and
a denial is its response. Afterwards frames are parsed only as fast as the application takes
messages, and bytes not yet parsed are not acknowledged: a peer who sends faster is held back by its
own window.

Who is told what. When the peer closes, breaks a rule or vanishes, the application first gets the
messages that came before, then websocket.disconnect; its `send()` raises ClientDisconnected. What
the application does wrong raises AppError in its own call.

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
from asgiri.worker.asgi.keepalive import KeepAlive
from asgiri.worker.asgi.request import RequestEnvironment, is_only
from asgiri.worker.asgi.types import Message, ResponseSink, Scope
from asgiri.worker.asgi.waiting import Waiters
from asgiri.worker.protocol.budget import Budget
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

NORMAL: Final = 1000
ABNORMAL: Final = 1006
"""What the application hears when the peer goes without a close frame (RFC 6455 §7.1.5)."""
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012
"""The client may come back at once."""


PING_BURST: Final = 1000
PINGS_PER_SECOND: Final = 50.0
"""Pings that are answered; a client that sends more wants nothing but our work. Libraries send one
in some seconds."""


@dataclass(slots=True, eq=False)
class WebSocketEnvironment:
    """What the WebSockets of a worker share."""

    requests: RequestEnvironment
    config: WebSocketConfig
    max_queue_size: int
    """Bytes of messages that may wait for the application, however few they are."""
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


OPEN: Final = _Phase.OPEN  # an attribute of the enum class costs 20 ns more


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
        # Receiving
        self._codec = WebSocketCodec(
            max_message_size=environment.config.max_message_size, deflate=negotiation.deflate
        )
        self._messages: deque[tuple[Message, int]] = deque((({"type": "websocket.connect"}, 0),))
        """With their sizes."""
        self._messages_size = 0
        self._early: list[bytes] = []
        """Sent by a peer that did not wait for the handshake's end."""
        self._credit = 0
        """Of bytes that are not parsed yet."""
        self._parsed = True
        # HTTP/1.1 says that no body follows the request; the tunnel begins with the answer.
        self._peer_gone = request.ended and request.http_version != "1.1"
        """The peer sends no more, in whatever way."""
        self._disconnect: Message | None = None
        self._receivers = Waiters(self._loop)
        # Sending
        self._may_send = True
        """Our side of the stream is open."""
        self._denial: ResponseHead | None = None
        self._denial_begun = False
        self._denial_size = 0
        self._paused = False
        self._pong: bytes | None = None
        self._pings = Budget(burst=PING_BURST, per_second=PINGS_PER_SECOND)
        """Answer that is due."""
        self._closed_by_us = False
        """By the server, not the application, which can't know."""
        self._senders = Waiters(self._loop)
        # Time
        self._keep_alive = KeepAlive(
            environment.config, self._loop, ping=self._send_ping, timed_out=self._ping_timed_out
        )
        self._drain_timer: asyncio.TimerHandle | None = None
        self._drain_due = False
        self._common.counters.websocket_began()

    # Exchange: what the session calls

    def start(self) -> None:
        """Run the application, eagerly where Python can."""
        if self._peer_gone:
            self._lose()
        self._task = self._common.application.start(self._run())

    def body_received(self, data: bytes, credit: int) -> None:
        self._keep_alive.heard()
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
        self._peer_gone = True
        self._senders.wake()
        if self._parsed:
            self._lose()

    def half_closed(self) -> None:
        """The peer closed its side before there was a tunnel: it will not take one."""
        self.body_ended()

    def disconnected(self) -> None:
        self._may_send = False
        self.body_ended()

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
            self._break_off()

    # What the application calls

    async def receive(self) -> Message:
        """ASGI `receive`: websocket.connect, the messages, then websocket.disconnect."""
        while True:
            if self._messages:
                message, size = self._messages.popleft()
                self._messages_size -= size
                self._parse()
                return message
            if self._disconnect is not None:
                return self._disconnect
            await self._receivers.wait()

    async def send(self, message: Message) -> None:
        """ASGI `send`. Raises ClientDisconnected (an OSError) once the peer is gone, AppError for a
        wrong message.
        """
        kind = message.get("type")
        self._raise_if_gone()
        if kind == "websocket.send" and self._phase is OPEN:
            content = message_content(message)
            if self._paused:
                await self._wait_writable(OPEN)
            if self._may_send:
                self._sink.send_tunnel(self._stream_id, self._codec.send_message(content))
        elif kind == "websocket.accept" and self._phase is _Phase.CONNECTING:
            self._accept(message)
        elif kind == "websocket.close" and self._phase is _Phase.CONNECTING:
            # The specification: "the server must [...] send a HTTP 403".
            self._deny(403, b"Forbidden")
        elif kind == "websocket.close" and self._phase is _Phase.OPEN:
            self._close(*_close_reason(message))
        elif kind == "websocket.http.response.start" and self._phase is _Phase.CONNECTING:
            self._denial = self._denial_head(message)
            self._phase = _Phase.DENYING
        elif kind == "websocket.http.response.body" and self._phase is _Phase.DENYING:
            if self._paused:
                await self._wait_writable(_Phase.DENYING)
            self._send_denial(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise AppError(f"{kind!r} while the WebSocket is {self._phase.name.lower()}")

    def _raise_if_gone(self) -> None:
        if (
            self._peer_gone
            or self._closed_by_us
            or (self._disconnect is not None and self._phase is _Phase.CLOSED)
        ):
            raise ClientDisconnected("the client has gone")

    async def _wait_writable(self, phase: _Phase) -> None:
        """Wait for the peer to take what it was sent; raise if the WebSocket is in another phase
        then.
        """
        while self._paused and self._phase is phase and not self._peer_gone:
            await self._senders.wait()
        self._raise_if_gone()
        if self._phase is not phase:
            raise AppError(f"the WebSocket is {self._phase.name.lower()}")

    # Opening

    def _accept(self, message: Message) -> None:
        headers = tunnel_fields(message.get("headers", ()))
        names = {name for name, _ in headers}
        if b"sec-websocket-extensions" in names:
            raise AppError("header b'sec-websocket-extensions': the server negotiates it")
        if (subprotocol := message.get("subprotocol")) is not None:
            if subprotocol not in self._negotiation.subprotocols:
                raise AppError(f"subprotocol {subprotocol!r} is none that the client offered")
            if b"sec-websocket-protocol" in names:
                raise AppError("header b'sec-websocket-protocol' besides 'subprotocol'")
            headers.append((b"sec-websocket-protocol", subprotocol.encode("ascii")))
        if (deflate := self._negotiation.deflate) is not None:
            headers.append((b"sec-websocket-extensions", deflate.response))
        headers += [field for field in self._common.defaults.fields if field[0] not in names]
        self._phase = _Phase.OPEN
        self._sink.accept_tunnel(self._stream_id, headers)
        self._log(101 if self._scope["http_version"] == "1.1" else 200, headers, 0)
        self._keep_alive.start()
        for data in self._early:
            self._codec.receive_data(data)
        self._early.clear()
        self._parse()
        if self._drain_due:
            self._loop.call_soon(self._close_for_drain)

    def _denial_head(self, message: Message) -> ResponseHead:
        head = response_head(
            message.get("status"), message.get("headers", ()), defaults=self._common.defaults
        )
        if head.status < 300:
            # RFC 8441 §5: over HTTP/2 and 3 any of these accepts.
            raise AppError(f"'status' must be 300 or more to deny a WebSocket, not {head.status}")
        return head

    def _deny(self, status: int, text: bytes) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        headers.append((b"content-length", b"%d" % len(text)))
        self._denial = response_head(status, headers, defaults=self._common.defaults)
        self._phase = _Phase.DENYING
        self._send_denial(text, more=False)

    def _send_denial(self, body: bytes, *, more: bool) -> None:
        denial = self._denial
        assert denial is not None
        if self._denial_begun:
            self._sink.send_body(self._stream_id, body, ended=not more)
        else:
            self._sink.send_response(self._stream_id, denial, body, ended=not more)
            self._denial_begun = True
        self._denial_size += len(body)
        if not more:
            self._may_send = False
            self._log(denial.status, denial.headers, self._denial_size)
            self._end(ABNORMAL, "")

    # Receiving

    def _parse(self) -> None:
        """Take messages out of what has come while there is room for them."""
        while self._phase is _Phase.CLOSING or (self._phase is _Phase.OPEN and self._has_room):
            event = self._codec.next_event()
            if event is None:
                self._parsed = True
                self._give_credit()
                if self._peer_gone:
                    self._lose()
                return
            self._handle(event)

    @property
    def _has_room(self) -> bool:
        environment = self._environment
        return (
            len(self._messages) < environment.config.max_queue
            and self._messages_size < environment.max_queue_size
        )

    def _handle(self, event: WebSocketEvent) -> None:
        match event:
            case MessageReceived(content, size):
                if self._phase is _Phase.OPEN:
                    key = "text" if isinstance(content, str) else "bytes"
                    self._messages.append(({"type": "websocket.receive", key: content}, size))
                    self._messages_size += size
                    self._receivers.wake()
            case PingReceived() if not self._pings.spend(self._common.now()):
                detail = f"more than {PING_BURST} pings"
                self._violated(POLICY_VIOLATION, Refusal.WEBSOCKET_PING_FLOOD, detail)
            case PingReceived(payload):
                if self._phase is _Phase.OPEN and not self._paused:
                    self._write(self._codec.send_pong(payload))
                else:
                    self._pong = payload  # the last one is enough (RFC 6455 §5.5.3)
            case PongReceived():
                pass  # every byte of the peer is a sign of life
            case CloseReceived(code, reason):
                if self._phase is _Phase.OPEN:
                    # RFC 6455 §5.5.1: "When sending a Close frame in response, the endpoint
                    # typically echos the status code it received."
                    self._write(self._codec.send_close(code))
                self._end(code, reason)
            case WebSocketViolation(code, refusal, detail):
                self._violated(code, refusal, detail)

    def _violated(self, code: int, refusal: Refusal, detail: str) -> None:
        self._environment.refuse(refusal)
        logger.debug("%s: %s", refusal.name, detail)
        if self._phase is _Phase.OPEN:
            self._write(self._codec.send_close(code, detail))
        self._end(code, detail)

    def _give_credit(self) -> None:
        if self._credit:
            credit, self._credit = self._credit, 0
            self._sink.acknowledge(self._stream_id, credit)

    # Sending

    def _write(self, data: bytes) -> None:
        if self._may_send:
            self._sink.send_body(self._stream_id, data, ended=False)

    def _send_ping(self, payload: bytes) -> bool:
        if self._paused:
            # Whoever lets us wait is somebody else's business: of the write timeout.
            return False
        self._write(self._codec.send_ping(payload))
        return True

    # Closing

    def _close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        self._write(self._codec.send_close(code, reason))
        self._phase = _Phase.CLOSING
        self._keep_alive.wait_close(self._close_timed_out)
        self._set_disconnect(code, reason)
        # The peer's close frame may have come already, behind messages that nobody wants any more.
        self._parse()

    def _close_for_drain(self) -> None:
        if self._phase is _Phase.OPEN:
            self._closed_by_us = True
            self._senders.wake()
            self._close(SERVICE_RESTART, "service restart")
        else:
            self._drain_due = True

    def _close_timed_out(self) -> None:
        self._environment.refuse(Refusal.WEBSOCKET_CLOSE_TIMEOUT)
        self._break_off()

    def _ping_timed_out(self) -> None:
        if self._credit:
            # The pong may be behind what waits for the application.
            self._keep_alive.start()
            return
        self._environment.refuse(Refusal.WEBSOCKET_PING_TIMEOUT)
        self._write(self._codec.send_close(INTERNAL_ERROR, "no answer to a ping"))
        self._end(ABNORMAL, "")

    def _break_off(self) -> None:
        """Close without the peer's consent."""
        self._may_send = False
        self._sink.reset_stream(self._stream_id)
        self._end(ABNORMAL, "")

    def _lose(self) -> None:
        """The peer has gone without a close frame, or after ours."""
        if self._phase is not _Phase.CLOSED:
            self._end(ABNORMAL, "")

    def _end(self, code: int, reason: str) -> None:
        """Both sides are done: end the tunnel, tell the application."""
        accepted = self._phase is _Phase.OPEN or self._phase is _Phase.CLOSING
        self._phase = _Phase.CLOSED
        self._keep_alive.stop()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        if self._may_send:
            self._may_send = False
            if accepted:
                self._sink.send_body(self._stream_id, b"", ended=True)
            else:
                self._sink.reset_stream(self._stream_id)
        self._early.clear()
        self._give_credit()
        self._set_disconnect(code, reason)
        self._senders.wake()
        self._end_exchange_if_over()

    def _set_disconnect(self, code: int, reason: str) -> None:
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
        self._receivers.wake()

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
        if self._peer_gone:
            self._lose()
        self._end_exchange_if_over()

    def _call_raised(self, error: BaseException) -> None:
        if self._cancelled and isinstance(error, asyncio.CancelledError):
            self._give_up(SERVICE_RESTART)
        elif self._disconnect is not None and is_only(error, ClientDisconnected):
            logger.debug("the client went before the application was done")
        else:
            self._common.counters.app_errors += 1
            logger.error("exception in the application", exc_info=error)
            self._give_up(INTERNAL_ERROR)

    def _call_returned(self) -> None:
        if self._phase is _Phase.OPEN:
            self._close(NORMAL, "")
        elif self._phase is _Phase.CONNECTING or self._phase is _Phase.DENYING:
            self._common.counters.app_errors += 1
            logger.error("the application returned without accepting or denying the WebSocket")
            self._give_up(INTERNAL_ERROR)

    def _give_up(self, code: int) -> None:
        """End the exchange for the application."""
        if self._phase is _Phase.OPEN:
            self._close(code, "")
        elif self._denial_begun and self._phase is _Phase.DENYING:
            self._break_off()
        elif self._phase is _Phase.CONNECTING or self._phase is _Phase.DENYING:
            if code == INTERNAL_ERROR:
                self._deny(500, b"Internal Server Error")
            else:
                self._deny(503, b"Service Unavailable")

    def _end_exchange_if_over(self) -> None:
        if self._returned and self._phase is _Phase.CLOSED:
            self._returned = False
            self._common.counters.websocket_ended()
            self._sink.exchange_ended(self._stream_id)

    def _log(self, status: int, headers: Headers, size: int) -> None:
        if self._common.access_log is not None:
            duration = self._common.now() - self._started
            self._common.access_log(
                self._scope, status, headers, size, duration, self._sink.number, self._stream_id
            )


def message_content(message: Message) -> str | bytes:
    content: Any = message.get("bytes")
    if content is None:
        content = message.get("text")
        if not isinstance(content, str):
            raise AppError("'websocket.send' must carry 'bytes' or 'text'")
        _check_text("text", content)
    elif not isinstance(content, bytes):
        if not isinstance(content, bytearray | memoryview):
            raise AppError(f"'bytes' must be bytes, not {type(content).__name__}")
        content = bytes(content)
    return content  # type: ignore[no-any-return]


def _close_reason(message: Message) -> tuple[int, str]:
    code, reason = message.get("code", NORMAL), message.get("reason") or ""
    if not isinstance(code, int) or not close_code_is_valid(code):
        raise AppError(f"'code' must be a close code that may be sent, not {code!r}")
    if not isinstance(reason, str):
        raise AppError(f"'reason' must be str, not {type(reason).__name__}")
    _check_text("reason", reason)
    return int(code), reason


def _check_text(name: str, text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise AppError(f"'{name}' cannot be UTF-8: {error.reason}") from None

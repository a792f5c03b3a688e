"""One call of an application that runs in a thread of its own (see `app_thread`).

An exchange calls an ASGI application in the main thread; here that call has two ends. `MainEnd`
carries out what the application sends, in order. `AppEnd` calls it over there, and gives it its
`receive` and `send`. Each is touched by its own thread only, but for what the docstrings name.

Waiting is dear: not for the two wake-ups (20 us), but because whoever waits in the application's
loop stands in line behind its computing neighbours. So `send()` returns at once where it is certain
that the message is right and the peer keeps up; the first message of the request comes along with
the call. A trivial request is one wake-up of each thread. What is wrong raises in the application's
own call all the same. Only that a client has gone is noticed by one `send()` later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from asgiri.errors import AppError, ClientDisconnected
from asgiri.worker.asgi.app_thread import AppThread
from asgiri.worker.asgi.types import Message, Receive, Scope, Send
from asgiri.worker.asgi.waiting import Waiters
from asgiri.worker.asgi.websocket import message_content
from asgiri.worker.protocol.headers import response_head

WINDOW: Final = 65536
"""Bytes that an application may have sent without waiting for the main thread to take them: what
one exchange holds on top of the transport's buffer."""
OVERHEAD: Final = 256
"""And what a message counts besides its content."""

Reply = asyncio.Future[None]
Fetch = Callable[[], Coroutine[Any, Any, Message]]


async def call(thread: AppThread, scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application over there: return when it returns, raise what it raises."""
    main = MainEnd(thread, receive, send)
    match scope["type"]:
        case "http":
            app: AppEnd = HttpAppEnd(thread, scope, main)
        case "websocket":
            app = WebSocketAppEnd(thread, scope, main)
        case _:
            app = AppEnd(thread, scope, main)
    await main.run(app, may_receive=_may_receive(scope))


class MainEnd:
    """The server's end: in the main thread."""

    __slots__ = (
        "_cut",
        "_filled",
        "_gave_up",
        "_outbox",
        "_outcome",
        "_over",
        "_receive",
        "_receiving",
        "_reply",
        "_send",
        "_task",
        "_thread",
        "cancelled",
        "failure",
        "landed",
    )

    def __init__(self, thread: AppThread, receive: Receive, send: Send) -> None:
        self._thread = thread
        self._receive = cast(Fetch, receive)  # all of ours are
        self._send = send
        self._task: asyncio.Task[Any] | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._outbox: deque[tuple[Message, Reply | None, int]] = deque()
        self._filled: asyncio.Future[None] | None = None
        self._reply: Reply | None = None
        self._cut = False
        """A message was given up while it waited for the peer: nothing may follow it."""
        self._gave_up = False
        """The application did not wait for what it had sent last."""
        self._over = False
        self._outcome: BaseException | None = None
        # Read by the other end
        self.cancelled = False
        self.failure: BaseException | None = None
        """What a message met that nobody waited for."""
        self.landed = 0
        """Bytes of such messages that were taken."""

    async def run(self, app: AppEnd, *, may_receive: bool) -> None:
        """Have the application called; return or raise as it does."""
        self._task = asyncio.current_task()
        self._begin(app, may_receive)
        while not self._over or self._outbox:
            try:
                await self._carry_out()
            except asyncio.CancelledError:
                if self._thread.ended:
                    raise
                if not self._gave_up:
                    # The call over there is what is to be cancelled, and decides what follows.
                    self.cancelled = True
                    self._thread.to_app.post(app.cancel)
        if self._receiving is not None:
            self._receiving.cancel()
        self._task = None
        self._raise_outcome()

    def _begin(self, app: AppEnd, may_receive: bool) -> None:
        first = _poll(self._receive()) if may_receive else None
        if first is not None or not may_receive:
            self._thread.to_app.post(app.begin, first)
        else:
            # Most bodies come with their heads: they are here on the loop's next turn.
            self._thread.main_loop.call_soon(self._begin_with_body, app)

    def _begin_with_body(self, app: AppEnd) -> None:
        self._thread.to_app.post(app.begin, _poll(self._receive()))

    def _raise_outcome(self) -> None:
        outcome = self._outcome
        if outcome is None and self.failure is not None:
            if self.cancelled:
                outcome = asyncio.CancelledError()
            elif not self._gave_up:
                outcome = self.failure
        if outcome is not None:
            try:
                raise outcome
            finally:
                self._outcome = self.failure = outcome = None  # it holds this frame

    # Sending

    async def _carry_out(self) -> None:
        """Send what there is, then wait for more."""
        outbox = self._outbox
        while outbox:
            message, self._reply, size = outbox.popleft()
            try:
                if self._cut:
                    raise ClientDisconnected("the exchange was broken off")
                await self._send(message)
            except asyncio.CancelledError:
                self._cut = True
                self._answer(ClientDisconnected("the exchange was broken off"), size)
                raise
            except Exception as error:
                self._answer(error, size)
            else:
                self._answer(None, size)
        if not self._over:
            self._filled = self._thread.main_loop.create_future()
            await self._filled

    def _answer(self, error: Exception | None, size: int) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            self._thread.to_app.post(_settle, reply, error)
        else:
            self.landed += size
            self.failure = self.failure or error

    def take(self, message: Message, reply: Reply | None, size: int) -> None:
        """Send this. Posted by the other end, which waits for `reply` if there is one."""
        self._outbox.append((message, reply, size))
        self._wake()

    def over(self, outcome: BaseException | None) -> None:
        """The application returned, or raised. Posted by the other end, once."""
        self._over = True
        self._outcome = outcome
        self._wake()
        replies = [self._reply, *(reply for _, reply, _ in self._outbox)]
        if self._task is not None and any(reply and reply.cancelled() for reply in replies):
            # It has given up what it was sending: there is nothing to wait for the peer for.
            self._gave_up = True
            self._task.cancel()

    def _wake(self) -> None:
        if self._filled is not None and not self._filled.done():
            self._filled.set_result(None)

    # Receiving

    def receive_one(self, app: AppEnd) -> None:
        """Fetch the next message. Posted by the other end."""
        message = _poll(self._receive())
        if message is not None:
            self._thread.to_app.post(app.received, message)
        else:
            self._receiving = self._thread.main_loop.create_task(self._receive_later(app))

    async def _receive_later(self, app: AppEnd) -> None:
        message = None
        try:
            message = await self._receive()
        finally:
            self._thread.to_app.post(app.received, message)

    def withdraw(self) -> None:
        """Nobody waits for a message any more. Posted by the other end."""
        if self._receiving is not None:
            # Not here: it may not have entered its `try` yet.
            self._thread.main_loop.call_soon(self._receiving.cancel)


class AppEnd:
    """The application's end: in its thread, but for construction."""

    __slots__ = ("_asked", "_ended", "_inbox", "_main", "_receivers", "_scope", "_task", "_thread")

    def __init__(self, thread: AppThread, scope: Scope, main: MainEnd) -> None:
        self._thread = thread
        self._scope = scope
        self._main = main
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._inbox: deque[Message] = deque()
        self._receivers = Waiters(thread.loop)
        self._asked = False
        """The main thread is looking for a message."""

    def begin(self, first: Message | None) -> None:
        """Call the application, with the first message that it will receive if there is one."""
        if self._main.cancelled:
            self._thread.to_main.post(self._main.over, asyncio.CancelledError())
            return
        if first is not None:
            self._inbox.append(first)
        self._task = self._thread.application.start(self._call())

    def cancel(self) -> None:
        """Cancel the application's call."""
        if self._task is not None:
            self._thread.application.cancel(self._task)

    async def _call(self) -> None:
        outcome = None
        try:
            await self._thread.application.call(self._scope, self.receive, self.send)
        except GeneratorExit:
            raise
        except BaseException as error:
            outcome = error
        self._release()
        self._ended = True
        self._thread.to_main.post(self._main.over, outcome)
        outcome = None  # it holds this frame

    def _release(self) -> None:
        """Send what was held back, if something was."""

    # Receiving

    async def receive(self) -> Message:
        """ASGI `receive`."""
        while not self._inbox:
            if not self._asked:
                self._asked = True
                self._thread.to_main.post(self._main.receive_one, self)
            try:
                await self._receivers.wait()
            except asyncio.CancelledError:
                # What is on its way stays for whoever asks next.
                if self._asked and not self._receivers:
                    self._thread.to_main.post(self._main.withdraw)
                raise
        return self._inbox.popleft()

    def received(self, message: Message | None) -> None:
        """A message has come, or none because nobody waited any more."""
        self._asked = False
        if message is not None:
            self._inbox.append(message)
        self._receivers.wake()

    # Sending

    async def send(self, message: Message) -> None:
        """ASGI `send`: returns when the main thread has taken the message, raises what it raises
        there.
        """
        if self._ended:
            raise AppError("send() after the application's call has ended")
        reply: Reply = self._thread.loop.create_future()
        self._thread.to_main.post(self._main.take, message, reply, 0)
        await reply


class HttpAppEnd(AppEnd):
    """Of an HTTP request."""

    __slots__ = ("_held", "_left", "_posted", "_started", "_told")

    def __init__(self, thread: AppThread, scope: Scope, main: MainEnd) -> None:
        super().__init__(thread, scope, main)
        self._held: Message | None = None
        """The head, which goes with the first part of the body, or on the loop's next turn."""
        self._started: bool | None = False
        """None: whatever comes now, let the main thread judge it."""
        self._left: int | None = None
        """Of the response's content-length."""
        self._told = False
        self._posted = 0

    def begin(self, first: Message | None) -> None:
        super().begin(first)
        self._release()

    async def receive(self) -> Message:
        message = await super().receive()
        self._told = self._told or message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        """ASGI `send`."""
        kind = message.get("type")
        if kind == "http.response.body" and self._is_sound(message):
            self._release()
            size = len(message.get("body", b"")) + OVERHEAD
            if self._posted - self._main.landed <= WINDOW:
                self._post({**message}, size)
                return
        elif kind == "http.response.start" and self._is_sound_start(message):
            self._held = {**message, "headers": [*message.get("headers", ())]}
            if self._task is not None:
                self._thread.loop.call_soon(self._release)
            return
        else:
            self._release()
            if kind != "http.response.early_hint":
                self._started = None
        await super().send(message)

    def _is_sound_start(self, message: Message) -> bool:
        """Whether it is certain to be accepted. Raises AppError if the head is not right."""
        headers = message.get("headers", ())
        if self._started is not False or self._unsure or not isinstance(headers, list | tuple):
            return False
        head = response_head(message.get("status"), headers, defaults=self._thread.checks)
        self._started = True
        self._left = head.content_length
        return True

    def _is_sound(self, message: Message) -> bool:
        """Whether a part of the body is certain to be accepted."""
        body = message.get("body", b"")
        if not self._started or self._unsure or type(body) is not bytes:
            self._started = None
            return False
        more = message.get("more_body", False)
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                self._started = None
                return False
        if not more:
            self._started = None
        return True

    @property
    def _unsure(self) -> bool:
        return self._told or self._ended or self._main.failure is not None

    def _release(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._post(held, OVERHEAD)

    def _post(self, message: Message, size: int) -> None:
        self._posted += size
        self._thread.to_main.post(self._main.take, message, None, size)


class WebSocketAppEnd(AppEnd):
    """Of a WebSocket."""

    __slots__ = ("_open", "_posted")

    def __init__(self, thread: AppThread, scope: Scope, main: MainEnd) -> None:
        super().__init__(thread, scope, main)
        self._open = False
        self._posted = 0

    async def receive(self) -> Message:
        message = await super().receive()
        if message["type"] == "websocket.disconnect":
            self._open = False
        return message

    async def send(self, message: Message) -> None:
        """ASGI `send`."""
        kind = message.get("type")
        if kind == "websocket.send" and self._open and self._main.failure is None:
            size = len(message_content(message)) + OVERHEAD
            if self._posted - self._main.landed <= WINDOW and not self._ended:
                self._posted += size
                self._thread.to_main.post(self._main.take, {**message}, None, size)
                return
        elif kind == "websocket.close":
            self._open = False
        await super().send(message)
        if kind == "websocket.accept":
            self._open = True


def _settle(reply: Reply, error: Exception | None) -> None:
    """Let a `send()` return or raise. Posted to the application's thread."""
    if not reply.done():
        if error is None:
            reply.set_result(None)
        else:
            reply.set_exception(error)


def _may_receive(scope: Scope) -> bool:
    """Whether its first message may be taken before the application asks for it: a client that
    waits for 100 (Continue) would be told to go on.
    """
    return not any(name == b"expect" for name, _ in scope.get("headers", ()))


def _poll(coroutine: Coroutine[Any, Any, Message]) -> Message | None:
    """Return a message that is there at once, else None: nobody has waited then."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        message: Message = returned.value
        return message
    coroutine.close()
    return None

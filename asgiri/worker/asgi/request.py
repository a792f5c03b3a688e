"""One HTTP request: the ASGI call on one side, a stream of the connection on the other.

Order of sending (`_Phase`): the head waits for the first part of the body, so that both leave in
one write. If the application makes us wait for it, the head goes alone: when its first step
returns, or on the loop's next turn.

Who is told what. The peer's wrongs come as events and end in `disconnected`. The application's
wrongs raise AppError in its own `send()`, and nothing of the message that broke the rule is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from asgiri.errors import AppError, ClientDisconnected
from asgiri.worker.asgi.application import Application
from asgiri.worker.asgi.counters import Counters
from asgiri.worker.asgi.files import PART_SIZE, FileAccess, FilePart
from asgiri.worker.asgi.limits import RequestLimits
from asgiri.worker.asgi.types import Message, ResponseSink, Scope
from asgiri.worker.asgi.waiting import Waiters
from asgiri.worker.protocol.events import Headers, RequestReceived, ResponseHead
from asgiri.worker.protocol.headers import ResponseDefaults, response_head, trailer_fields

logger = logging.getLogger("asgiri.worker")

AccessLog = Callable[["Scope", int, Headers, int, float, int, int], None]
"""Scope, status, response fields, bytes of body sent, seconds from the request's head to the
response's end, numbers of connection and stream.
"""


@dataclass(slots=True, eq=False)
class RequestEnvironment:
    """What the HTTP requests of a worker share."""

    application: Application
    defaults: ResponseDefaults
    counters: Counters
    loop: asyncio.AbstractEventLoop
    now: Callable[[], float]
    files: FileAccess
    access_log: AccessLog | None = None
    limits: RequestLimits | None = None
    """None: as many requests as come, for as long as they take."""


BODILESS: Final = (204, 205, 304)
"""Statuses whose responses have no body, whatever the application sends."""
RETRY_AFTER: Final = 1
"""Seconds after which a client that was refused may come again."""


class _Phase(enum.Enum):
    NOTHING = enum.auto()
    """No message yet."""
    PENDING = enum.auto()
    """The head is known and waits for the first part of the body."""
    OPENING = enum.auto()
    """The same, and a file is being opened that it waits for."""
    BODY = enum.auto()
    """The head has been handed to the connection."""
    FILE = enum.auto()
    """Part of a file is being sent: nothing may come between."""
    TRAILERS = enum.auto()
    """The body is complete, the trailers the application announced are not."""
    COMPLETE = enum.auto()
    """Nothing more may be sent."""


# Module globals: an attribute of the enum class costs 20 ns more, several times per request.
NOTHING: Final = _Phase.NOTHING
PENDING: Final = _Phase.PENDING
OPENING: Final = _Phase.OPENING
BODY: Final = _Phase.BODY
FILE: Final = _Phase.FILE
TRAILERS: Final = _Phase.TRAILERS
COMPLETE: Final = _Phase.COMPLETE


class HttpRequest:
    """An `Exchange`. `start` runs the application; the rest is called by the session and by the
    application.
    """

    __slots__ = (
        "_announced_trailers",
        "_body_bytes",
        "_body_ended",
        "_body_taken",
        "_cancelled",
        "_credit",
        "_environment",
        "_expects_continue",
        "_gone",
        "_half_closed",
        "_head",
        "_parts",
        "_paused",
        "_phase",
        "_scope",
        "_sink",
        "_started",
        "_stream_id",
        "_task",
        "_told",
        "_trailers",
        "_waiters",
        "body_awaited_since",
    )

    def __init__(
        self,
        sink: ResponseSink,
        request: RequestReceived,
        scope: Scope,
        environment: RequestEnvironment,
    ) -> None:
        self._sink = sink
        self._stream_id = request.stream_id
        self._scope = scope
        self._environment = environment
        self._started = environment.now()
        self._task: asyncio.Task[None] | None = None
        self._gone = False
        self._half_closed = False
        self._told = False
        """The application has heard http.disconnect: it is not served on."""
        self._cancelled = False
        self._waiters: Waiters | None = None  # made when somebody waits: most never do
        # Receiving
        self._parts: list[bytes] = []
        self._credit = 0
        self._body_ended = request.ended
        self._body_taken = False
        self._expects_continue = request.expects_continue
        self.body_awaited_since: float | None = None
        """Since when the application has been waiting for a part of the body that has not come."""
        # Sending
        self._phase = NOTHING
        self._head: ResponseHead | None = None
        self._announced_trailers = False
        self._trailers: Headers | None = None
        self._body_bytes = 0
        self._paused = False
        environment.counters.request_began(request.http_version)

    # Exchange: what the session calls

    def start(self) -> None:
        """Run the application, or wait until it may be run."""
        limits = self._environment.limits
        if limits is None:
            self.begin()
        else:
            limits.enter(self)

    def begin(self) -> None:
        """Run the application, eagerly where Python can."""
        task = self._environment.application.start(self._run())
        if task is not None:
            self._task = task
            if self._phase is PENDING:
                self._flush_head()

    def body_received(self, data: bytes, credit: int) -> None:
        if self._phase is COMPLETE or self._gone:
            # Nobody will read it: let the peer go on, so that it comes to see the answer.
            self._sink.acknowledge(self._stream_id, credit)
            return
        self._parts.append(data)
        self._credit += credit
        self._wake()

    def body_ended(self) -> None:
        self._body_ended = True
        self._wake()

    def half_closed(self) -> None:
        """The peer closed its side after a complete request. It may be gone, or wait for the
        answer: `receive()` says that it is gone, `send()` still tries until the application has
        heard that.
        """
        self._half_closed = True
        self._wake()

    def refuse(self) -> None:
        """Answer that the server has no time for it; the application never hears of it."""
        self._give_up(503, b"Service Unavailable", retry_after=RETRY_AFTER)
        self._end()

    def timed_out(self) -> None:
        """The application has taken too long. What it does after its response is its own affair."""
        if self._phase is COMPLETE:
            return
        self._cancelled = True
        begun = self._phase in (BODY, FILE, TRAILERS)
        self._give_up(504, b"Gateway Timeout")
        self._gone = self._gone or begun  # its stream was reset
        if self._task is not None:
            self._environment.application.cancel(self._task)

    def disconnected(self) -> None:
        self._gone = True
        self._wake()
        self._withdraw()

    def _withdraw(self) -> bool:
        """End the exchange if the application has not been called yet."""
        limits = self._environment.limits
        if limits is None or not limits.withdraw(self):
            return False
        self._give_up(503, b"Service Unavailable", retry_after=RETRY_AFTER)
        self._end()
        return True

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    def drain(self) -> None:
        """A request goes on; the engine tells the peer that the connection ends with it."""

    def cancel(self) -> None:
        self._cancelled = True
        if self._withdraw():
            return
        if self._task is not None:
            self._environment.application.cancel(self._task)

    # What the application calls

    async def receive(self) -> Message:
        """ASGI `receive`: the body in parts, then http.disconnect once there is one."""
        if self._expects_continue:
            self._expects_continue = False
            if self._phase is NOTHING or self._phase is PENDING:
                # RFC 9110 §10.1.1: 100 (Continue) when the body is wanted; a final status says that
                # it is not.
                self._sink.send_informational(self._stream_id, 100, [])
        while self._phase is not COMPLETE:
            if not self._body_taken and (self._parts or self._body_ended):
                return self._take_body()
            if self._gone or self._half_closed:
                break
            if not self._body_ended:
                self.body_awaited_since = self._environment.now()
            try:
                await self._wait()
            finally:
                self.body_awaited_since = None
        self._told = True
        return {"type": "http.disconnect"}

    def _take_body(self) -> Message:
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        ended = self._body_taken = self._body_ended
        if credit := self._credit:
            self._credit = 0
            self._environment.counters.body_bytes_in += len(body)
            self._sink.acknowledge(self._stream_id, credit)
        return {"type": "http.request", "body": body, "more_body": not ended}

    async def send(self, message: Message) -> None:
        """ASGI `send`. Raises ClientDisconnected (an OSError) once the peer is gone, AppError for a
        wrong message.
        """
        if (self._gone or self._told) and self._phase is not COMPLETE:
            raise ClientDisconnected("the client has gone")
        kind = message.get("type")
        if kind == "http.response.body":
            if self._paused:
                await self._wait_writable()
            self._send_body(message)
        elif kind == "http.response.start":
            self._send_start(message)
        elif kind == "http.response.trailers":
            self._send_trailers(message)
        elif kind == "http.response.early_hint":
            self._send_early_hint(message)
        elif kind == "http.response.pathsend":
            await self._send_path(message)
        elif kind == "http.response.zerocopysend":
            await self._send_zero_copy(message)
        else:
            raise AppError(f"send() knows no message {kind!r}")

    # Sending

    def _send_start(self, message: Message) -> None:
        if self._phase is not NOTHING:
            raise AppError(f"'http.response.start' {self._where()}")
        head = response_head(
            message.get("status"), message.get("headers", ()), defaults=self._environment.defaults
        )
        self._head = head
        self._phase = PENDING
        if message.get("trailers"):
            # Without the extension nobody can be sent trailers; then the announcement says nothing.
            self._announced_trailers = "http.response.trailers" in self._scope["extensions"]
        if self._task is not None:
            # Not the first step any more: nobody else will notice that the head waits.
            self._environment.loop.call_soon(
                self._flush_head, context=self._environment.application.context
            )

    def _send_body(self, message: Message) -> None:
        phase = self._phase
        if phase is not PENDING and phase is not BODY:
            raise AppError(f"'http.response.body' {self._where()}")
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = _to_bytes(body)
        self._queue_body(phase, body, more=message.get("more_body", False))

    def _queue_body(self, phase: _Phase, body: bytes, *, more: bool) -> None:
        ended = not more and not self._announced_trailers
        # The engine counts the body against its content-length and raises AppError before it queues
        # anything: the phase moves on behind it.
        if phase is PENDING:
            assert self._head is not None
            self._sink.send_response(self._stream_id, self._head, body, ended=ended)
            self._phase = BODY
        elif body or ended:
            self._sink.send_body(self._stream_id, body, ended=ended)
        self._body_bytes += len(body)
        if ended:
            self._complete()
        elif not more:
            self._phase = TRAILERS

    async def _send_path(self, message: Message) -> None:
        phase = self._phase
        # BODY also when only the head has gone, because the application took its time.
        if phase is not PENDING and (phase is not BODY or self._body_bytes):
            raise AppError(f"'http.response.pathsend' {self._where()}")
        with self._busy_with_file(phase):
            file, size = await self._environment.files.open(message.get("path"))
        try:
            await self._send_file(file, 0, size, more=False)
        finally:
            os.close(file)

    async def _send_zero_copy(self, message: Message) -> None:
        if self._phase is not PENDING and self._phase is not BODY:
            raise AppError(f"'http.response.zerocopysend' {self._where()}")
        part = FilePart(message)
        more = message.get("more_body", False)
        await self._send_file(part.descriptor, part.offset, part.count, more=more)
        part.sent()

    async def _send_file(self, file: int, offset: int, count: int, *, more: bool) -> None:
        head = self._head
        assert head is not None
        if self._phase is PENDING and not more and not self._announced_trailers:
            self._fit_length(head, count)
        if head.status in BODILESS or self._scope["method"] == "HEAD":
            self._queue_body(self._phase, b"", more=more)
        elif self._sink.sends_files and count > PART_SIZE:
            await self._send_file_by_system(file, offset, count, more=more)
        else:
            await self._send_file_by_parts(file, offset, count, more=more)

    def _fit_length(self, head: ResponseHead, count: int) -> None:
        """A file that is the whole body has a size: no need for chunks, or to begin what can't
        end.
        """
        if head.content_length is None:
            if head.status not in BODILESS:
                # Another head: this one may be shared.
                fields = [*head.headers, (b"content-length", b"%d" % count)]
                self._head = ResponseHead(head.status, fields, count, head.close)
        elif head.content_length != count:
            raise AppError(f"the file has {count} bytes, content-length is {head.content_length}")

    async def _send_file_by_system(self, file: int, offset: int, count: int, *, more: bool) -> None:
        if self._paused:
            await self._wait_writable()
        self._flush_head()
        ended = not more and not self._announced_trailers
        with self._busy_with_file(BODY):
            try:
                await self._sink.send_file(self._stream_id, file, offset, count, ended=ended)
            except ClientDisconnected:
                self._gone = True  # the system told it here before it told the transport
                raise
        self._body_bytes += count
        if ended:
            self._complete()
        elif not more:
            self._phase = TRAILERS

    async def _send_file_by_parts(self, file: int, offset: int, count: int, *, more: bool) -> None:
        while True:
            phase = self._phase
            size = min(count, PART_SIZE)
            part = b""
            with self._busy_with_file(phase):
                if self._paused:
                    await self._wait_writable()
                if size:
                    part = await self._environment.files.read(file, size, offset)
            if self._gone:
                raise ClientDisconnected("the client has gone")
            if size and not part:
                raise AppError(f"the file ended {count} bytes before its end")
            offset += len(part)
            count -= len(part)
            self._queue_body(phase, part, more=more or count > 0)
            if not count:
                return

    @contextlib.contextmanager
    def _busy_with_file(self, phase: _Phase) -> Iterator[None]:
        """Let nobody else send anything, not even the head: it goes along with the first part."""
        busy = self._phase = OPENING if phase is PENDING else FILE
        try:
            yield
        finally:
            if self._phase is busy:
                self._phase = phase

    def _send_trailers(self, message: Message) -> None:
        if self._phase is not TRAILERS:
            raise AppError(f"'http.response.trailers' {self._where()}")
        self._trailers = [*(self._trailers or ()), *trailer_fields(message.get("headers", ()))]
        if not message.get("more_trailers", False):
            self._sink.send_trailers(self._stream_id, self._trailers)
            self._complete()

    def _send_early_hint(self, message: Message) -> None:
        if self._phase is not NOTHING:
            raise AppError(f"'http.response.early_hint' {self._where()}")
        if "http.response.early_hint" not in self._scope["extensions"]:
            raise AppError("'http.response.early_hint' is not among the scope's extensions")
        links = trailer_fields([(b"link", link) for link in message.get("links", ())])
        self._sink.send_informational(self._stream_id, 103, links)

    def _flush_head(self) -> None:
        """Send the head alone: the application keeps us waiting for the body."""
        if self._phase is PENDING and not self._gone:
            assert self._head is not None
            self._phase = BODY
            self._sink.send_response(self._stream_id, self._head, b"", ended=False)

    def _where(self) -> str:
        return {
            NOTHING: "before 'http.response.start'",
            PENDING: "after 'http.response.start'",
            OPENING: "while a file is being opened",
            BODY: "after 'http.response.start', within the body",
            FILE: "while a file is being sent",
            TRAILERS: "after the body, where the trailers are due",
            COMPLETE: "after the response was complete",
        }[self._phase]

    # Waiting

    async def _wait(self) -> None:
        """Wait until something has changed."""
        if self._waiters is None:
            self._waiters = Waiters(self._environment.loop)
        await self._waiters.wait()

    def _wake(self) -> None:
        if self._waiters is not None:
            self._waiters.wake()

    async def _wait_writable(self) -> None:
        while self._paused and not self._gone:
            await self._wait()
        if self._gone:
            raise ClientDisconnected("the client has gone")

    # The end

    async def _run(self) -> None:
        try:
            await self._environment.application.call(self._scope, self.receive, self.send)
        except GeneratorExit:
            raise  # the event loop is being torn down, nothing can be sent
        except BaseException as error:
            self._call_raised(error)
        else:
            if self._phase is not COMPLETE:
                self._call_returned_early()
        self._finish()

    def _call_raised(self, error: BaseException) -> None:
        if self._cancelled and isinstance(error, asyncio.CancelledError):
            self._give_up(503, b"Service Unavailable")
        elif (self._gone or self._told) and is_only(error, ClientDisconnected):
            logger.debug("the client went before the response was complete")
            self._break_off()
        else:
            self._environment.counters.app_errors += 1
            logger.error("exception in the application", exc_info=error)
            self._give_up(500, b"Internal Server Error")

    def _call_returned_early(self) -> None:
        if self._gone or self._told:
            self._break_off()
            return
        self._environment.counters.app_errors += 1
        logger.error("the application returned %s", self._missing())
        self._give_up(500, b"Internal Server Error")

    def _missing(self) -> str:
        match self._phase:
            case _Phase.NOTHING:
                return "without a response"
            case _Phase.TRAILERS:
                return "without the trailers it announced"
            case _:
                return "before its response was complete"

    def _give_up(self, status: int, text: bytes, *, retry_after: int = 0) -> None:
        """End the exchange for the application: an error if nothing was sent yet, else a visible
        break.
        """
        if self._phase is COMPLETE:
            return
        if self._phase in (NOTHING, PENDING, OPENING) and not self._gone:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            headers.append((b"content-length", b"%d" % len(text)))
            if retry_after:
                headers.append((b"retry-after", b"%d" % retry_after))
            self._head = response_head(status, headers, defaults=self._environment.defaults)
            self._body_bytes = len(text)
            self._sink.send_response(self._stream_id, self._head, text, ended=True)
            self._complete()
        else:
            self._break_off()

    def _break_off(self) -> None:
        """The peer must not take what it has for the whole; one that is half gone shall go."""
        if not self._gone:
            self._sink.reset_stream(self._stream_id)

    def _complete(self) -> None:
        """The response is complete: count it, and let go of what is left of the request."""
        self._phase = COMPLETE
        assert self._head is not None
        environment = self._environment
        duration = environment.now() - self._started
        environment.counters.response_ended(self._head.status, duration, self._body_bytes)
        if environment.access_log is not None:
            self._log(self._head, duration)
        if self._waiters is not None:
            self._waiters.wake()
        if self._credit:
            self._parts.clear()
            credit, self._credit = self._credit, 0
            self._sink.acknowledge(self._stream_id, credit)

    def _finish(self) -> None:
        """The application's call returned."""
        self._end()
        if self._environment.limits is not None:
            self._environment.limits.left(self)

    def _end(self) -> None:
        environment = self._environment
        environment.counters.request_ended()
        if self._phase is not COMPLETE and self._head is not None and environment.access_log:
            self._log(self._head, environment.now() - self._started)
        self._sink.exchange_ended(self._stream_id)

    def _log(self, head: ResponseHead, duration: float) -> None:
        log = self._environment.access_log
        assert log is not None
        log(
            self._scope,
            head.status,
            head.headers,
            self._body_bytes,
            duration,
            self._sink.number,
            self._stream_id,
        )


def _to_bytes(body: Any) -> bytes:
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise AppError(f"'body' must be bytes, not {type(body).__name__}")


def is_only(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether it is of this kind, or a group of nothing else (task groups wrap what they raise)."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_only(member, kind) for member in error.exceptions)
    return isinstance(error, kind)

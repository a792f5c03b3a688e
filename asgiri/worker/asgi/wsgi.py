"""WSGI applications (PEP 3333), each call in a thread: an ASGI application made of one.

The adapters on PyPI were tried first. asgiref's reads the whole request body before it calls the
application, and calls it for one request at a time. With a2wsgi 1.10 the thread of a response whose
client goes away waits for ever, so that ten such clients stop a worker; `readline(n)` says that the
body is over when a part of it is late; and a body that breaks off ends like one that is complete.

Between the two sides. The thread asks the event loop for each part of the request's body, and gives
it each part of the response; it waits for both, so that flow control reaches the application. What
ends the response is not waited for: most responses cost one way to the thread and one back.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

from asgiri.errors import AppError, ClientDisconnected
from asgiri.worker.asgi.types import Message, Receive, Scope, Send

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

BLOCK_SIZE: Final = 65536
"""Bytes of a file in memory at once, where a file is read here."""
READ_AHEAD: Final = 16384
"""Bytes that a small read of the request's body takes at once: as much as a frame of HTTP/2."""

# As CGI (RFC 3875 §4.1.16) writes them, and servers that knew HTTP/2 before us.
PROTOCOLS: Final = {"1.0": "HTTP/1.0", "1.1": "HTTP/1.1", "2": "HTTP/2.0", "3": "HTTP/3.0"}

ExceptionInfo = tuple[Any, Any, Any]
T = TypeVar("T")


class WsgiApplication:
    """An ASGI 3 application. One per worker."""

    def __init__(self, application: WSGIApplication, *, threads: int) -> None:
        self._application = application
        # Requests that wait for a thread are as many as are open: --limit-concurrency bounds them.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="wsgi")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await _Call(scope, receive, send).serve(self._application, self._threads)
            case "websocket":
                await receive()
                await send({"type": "websocket.close"})
            case "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
                self._threads.shutdown(wait=False, cancel_futures=True)
                await send({"type": "lifespan.shutdown.complete"})


class FileWrapper:
    """What PEP 3333 calls `wsgi.file_wrapper`: a file as a response body."""

    def __init__(self, file: Any, block_size: int = BLOCK_SIZE) -> None:
        self.file: Final = file
        self._block_size = block_size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.file.read(self._block_size), b"")

    def close(self) -> None:
        if hasattr(self.file, "close"):
            self.file.close()

    @property
    def is_plain(self) -> bool:
        """Its descriptor gives the same bytes as `read`. Those of gzip have one that does not."""
        file = self.file
        if isinstance(file, io.BufferedReader | io.BufferedRandom):
            file = file.raw
        return isinstance(file, io.FileIO)


class _Call:
    """One request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        self._scope = scope
        self._receive = receive
        self._send = send
        self._is_over = False
        self._tasks: set[asyncio.Task[Any]] = set()
        """What the event loop does for the thread."""
        self._body_ended = False
        self._start: Message | None = None
        self._begun = False
        self._length_left: int | None = None
        self._last: Future[None] | None = None

    # On the event loop

    async def serve(self, application: WSGIApplication, threads: ThreadPoolExecutor) -> None:
        context = contextvars.copy_context()
        try:
            last = await self._loop.run_in_executor(threads, context.run, self._run, application)
            await asyncio.wrap_future(last)
        finally:
            # Cancelled perhaps: its time was over, or the worker's. Nobody can stop the thread, but
            # it can do nothing more.
            self._is_over = True
            for task in self._tasks:
                task.cancel()

    async def _serve_thread(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.current_task()
        assert task is not None
        if self._is_over:
            raise ClientDisconnected("the request is over")
        self._tasks.add(task)
        try:
            return await work()
        finally:
            self._tasks.discard(task)

    async def _next_message(self) -> Message:
        return await self._receive()

    # In the thread

    def _run(self, application: WSGIApplication) -> Future[None]:
        """Run the application; return the end of its response, which may still be on its way."""
        try:
            body = application(build_environ(self._scope, self.receive_part), self._start_response)
            try:
                self._send_body(body)
                return self._last or self._submit_messages(self._body(b"", more=False))
            finally:
                if close := getattr(body, "close", None):
                    close()
        except StopIteration as error:
            # It would get stuck in the future on its way to the event loop.
            raise RuntimeError("the application raised StopIteration") from error

    def _send_body(self, body: Iterable[bytes]) -> None:
        if isinstance(body, list | tuple):
            self._send_part(b"".join(body), more=False)
        elif isinstance(body, FileWrapper) and body.is_plain and not self._begun:
            self._last = self._submit_messages([self._head(), self._file(body)])
            _wait(self._last)  # before the file is closed
        else:
            for part in body:
                self._send_part(part)

    def _send_part(self, part: bytes, *, more: bool = True) -> None:
        # PEP 3333: the head must not leave before the first part that is not empty.
        if not part and (more or self._last is not None):
            return
        if self._last is not None:
            raise AppError("the body goes on behind its content-length")
        if self._length_left is not None:
            self._length_left -= len(part)
            more = more and self._length_left != 0
        sending = self._submit_messages(self._body(part, more=more))
        if more:
            _wait(sending)
        else:
            self._last = sending

    def _start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExceptionInfo | None = None,
    ) -> Callable[[bytes], object]:
        if exc_info is not None:
            if self._begun:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._start is not None:
            raise AppError("start_response() was called again, and without exc_info")
        if not status[:3].isdecimal():
            raise AppError(f"the status must begin with three digits, not {status!r}")
        fields = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
        ]
        self._start = {
            "type": "http.response.start",
            "status": int(status[:3]),
            "headers": fields,
        }
        lengths = [value for name, value in fields if name == b"content-length"]
        self._length_left = int(lengths[0]) if lengths and lengths[0].isdigit() else None
        return self._send_part

    def _head(self) -> Message:
        if self._start is None:
            raise AppError("the body came before start_response() was called")
        self._begun = True
        return self._start

    def _body(self, part: bytes, *, more: bool) -> list[Message]:
        body = {"type": "http.response.body", "body": part, "more_body": more}
        return [body] if self._begun else [self._head(), body]

    def _file(self, body: FileWrapper) -> Message:
        message = {"type": "http.response.zerocopysend", "file": body.file}
        if self._length_left is not None:
            message["count"] = self._length_left
        return message

    def receive_part(self) -> bytes:
        """Wait for a part of the request's body; b"" at its end. ClientDisconnected if it broke
        off.
        """
        while not self._body_ended:
            message = _wait(self._submit(self._next_message))
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client went before the body was complete")
            self._body_ended = not message.get("more_body", False)
            if part := message.get("body", b""):
                return bytes(part)
        return b""

    def _submit_messages(self, messages: list[Message]) -> Future[None]:
        async def send_all() -> None:
            for message in messages:
                await self._send(message)

        return self._submit(send_all)

    def _submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._serve_thread(work), self._loop)


def _wait(future: Future[T]) -> T:
    try:
        return future.result()
    except CancelledError:
        raise ClientDisconnected("the request is over") from None


class _Input(io.RawIOBase):
    """The request's body as a file without a buffer."""

    def __init__(self, receive_part: Callable[[], bytes]) -> None:
        self._receive_part = receive_part
        self._part = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._part:
            self._part = memoryview(self._receive_part())
        taken = self._part[: len(buffer)]
        buffer[: len(taken)] = taken
        self._part = self._part[len(taken) :]
        return len(taken)


def build_environ(scope: Scope, receive_part: Callable[[], bytes]) -> dict[str, Any]:
    """Say in the words of CGI what the scope says. Text is bytes read as Latin-1 (PEP 3333)."""
    secure = scope["scheme"] == "https"
    root_path = scope["root_path"].encode().decode("latin-1")
    path = unquote_to_bytes(scope["raw_path"]).decode("latin-1")
    query = scope["query_string"].decode("latin-1")
    target = scope["raw_path"].decode("latin-1")
    # On a Unix socket the server has no port, and the client no address.
    host, port = scope["server"] or ("localhost", None)
    client_host, client_port = scope["client"] or ("", "")
    environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root_path,
        "PATH_INFO": path.removeprefix(root_path),
        "QUERY_STRING": query,
        "REQUEST_URI": f"{target}?{query}" if query else target,
        "SERVER_NAME": "localhost" if port is None else host,
        "SERVER_PORT": str(port or (443 if secure else 80)),
        "SERVER_PROTOCOL": PROTOCOLS[scope["http_version"]],
        "REMOTE_ADDR": client_host,
        "REMOTE_PORT": str(client_port),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": io.BufferedReader(_Input(receive_part), READ_AHEAD),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "asgi.scope": scope,
    }
    _add_fields(environ, scope["headers"])
    return environ


def _add_fields(environ: dict[str, Any], fields: Iterable[tuple[bytes, bytes]]) -> None:
    for raw_name, raw_value in fields:
        if b"_" in raw_name:
            # It would pass for the field with a hyphen, which a proxy in front may vouch for.
            continue
        name = raw_name.decode("latin-1").upper().replace("-", "_")
        if name not in ("CONTENT_LENGTH", "CONTENT_TYPE"):
            name = f"HTTP_{name}"
        value = raw_value.decode("latin-1")
        if name in environ:
            value = f"{environ[name]}{'; ' if name == 'HTTP_COOKIE' else ','}{value}"
        environ[name] = value

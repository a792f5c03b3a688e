"""ASGI calls that a test drives from its own process, one message at a time.

A request with the header `x-remote-app: PATH` makes `tests.support.apps:app` connect to a Unix
socket at PATH, where the test listens, and do nothing but what the test says: receive, send, raise,
return. So a test states both sides of an exchange in order, and waits for events, not for time.

    async with remote_apps() as apps:
        exchange = await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        receiving = call.start_receive()
        await exchange.cancel()
        assert (await receiving)["type"] == "http.disconnect"
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import struct
import tempfile
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

HEADER = b"x-remote-app"
FRAME = struct.Struct("!I")
PATIENCE = 20.0
"""Longest wait for anything in one call, in seconds: a test that hangs says where."""

Message = dict[str, Any]
T = TypeVar("T")


class DeliberateError(Exception):
    """Raised on purpose by an application: the only traceback a server's log may show unasked."""


class RemoteRaised(Exception):
    """receive() or send() raised in the application."""

    def __init__(self, name: str, bases: tuple[str, ...], text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.bases = bases
        """Names of all classes of the exception."""


async def read_frame(reader: asyncio.StreamReader) -> Any:
    (size,) = FRAME.unpack(await reader.readexactly(FRAME.size))
    return pickle.loads(await reader.readexactly(size))


def write_frame(writer: asyncio.StreamWriter, value: Any) -> None:
    payload = pickle.dumps(value)
    writer.write(FRAME.pack(len(payload)) + payload)


# In the worker


class Executor:
    """The application's side of one call."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, receive: Any, send: Any
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._receive = receive
        self._send = send
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Carry out orders until one ends the call. Each runs in its own task, side by side."""
        try:
            while True:
                number, name, argument = await read_frame(self._reader)
                match name:
                    case "return":
                        return
                    case "raise":
                        raise DeliberateError(argument)
                    case "exit":
                        os._exit(argument)
                    case _:
                        task = asyncio.ensure_future(self._carry_out(number, name, argument))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the test is over
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _carry_out(self, number: int, name: str, argument: Any) -> None:
        try:
            match name:
                case "receive":
                    result = await self._receive()
                case "receive_all":
                    result = await self._receive_all()
                case "send":
                    result = await self._send(argument)
                case _:
                    raise ValueError(name)
        except Exception as error:
            bases = tuple(base.__name__ for base in type(error).__mro__)
            write_frame(self._writer, (number, "raised", (type(error).__name__, bases, str(error))))
        else:
            write_frame(self._writer, (number, "returned", result))

    async def _receive_all(self) -> bytes:
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise EOFError(message["type"])
            body += message.get("body", b"")
            if not message.get("more_body", False):
                return bytes(body)


async def remote_app(scope: Any, receive: Any, send: Any) -> None:
    """Be driven by the test named in the request's `x-remote-app` field."""
    path = dict(scope["headers"])[HEADER].decode()
    reader, writer = await asyncio.open_unix_connection(path)
    plain = {
        name: value
        for name, value in scope.items()
        if isinstance(value, (str, bytes, int, list, tuple, dict, type(None)))
    }
    write_frame(writer, (os.getpid(), plain))
    try:
        await Executor(reader, writer, receive, send).run()
    except asyncio.CancelledError:
        write_frame(writer, (0, "cancelled", None))
        raise
    finally:
        writer.close()


# In the test


class AppCall:
    """The test's side of one call."""

    def __init__(
        self,
        pid: int,
        scope: Message,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.pid = pid
        """Of the worker that runs it."""
        self.scope = scope
        self.cancelled = asyncio.Event()
        self.ended = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    # Orders

    async def receive(self) -> Message:
        return await within(self.start_receive(), "receive() in the application")

    def start_receive(self) -> asyncio.Future[Message]:
        return self._order("receive")

    async def receive_all(self) -> bytes:
        """The whole request body."""
        return await within(self._order("receive_all"), "the request body in the application")

    async def send(self, message: Message) -> None:
        await within(self.start_send(message), f"send({message}) in the application")

    def start_send(self, message: Message) -> asyncio.Future[None]:
        return self._order("send", message)

    async def start_response(self, status: int = 200, headers: Any = (), **more: Any) -> None:
        fields = [
            (n.encode() if isinstance(n, str) else n, v.encode() if isinstance(v, str) else v)
            for n, v in headers
        ]
        await self.send(
            {"type": "http.response.start", "status": status, "headers": fields, **more}
        )

    async def send_body(self, body: bytes, *, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def respond(self, status: int = 200, body: bytes = b"", headers: Any = ()) -> None:
        await self.start_response(status, headers)
        await self.send_body(body, more=False)

    def finish(self) -> None:
        """Return from the call."""
        self._give_order("return")

    def fail(self, text: str = "on purpose") -> None:
        """Raise DeliberateError out of the call."""
        self._give_order("raise", text)

    def exit_process(self, status: int) -> None:
        self._give_order("exit", status)

    async def wait_cancelled(self) -> None:
        await within(self.cancelled.wait(), "the application's task to be cancelled")

    async def wait_ended(self) -> None:
        await within(self.ended.wait(), "the application to return")

    def _order(self, name: str, argument: Any = None) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self._waiting[self._give_order(name, argument)] = future
        return future

    def _give_order(self, name: str, argument: Any = None) -> int:
        number = next(self._numbers)
        write_frame(self._writer, (number, name, argument))
        return number

    # Answers

    async def listen(self) -> None:
        """Until the application is gone."""
        try:
            while True:
                number, outcome, result = await read_frame(self._reader)
                if outcome == "cancelled":
                    self.cancelled.set()
                    continue
                future = self._waiting.pop(number)
                if future.cancelled():
                    continue
                if outcome == "returned":
                    future.set_result(result)
                else:
                    future.set_exception(RemoteRaised(*result))
                    future.exception()  # a test need not look at each
        except (asyncio.IncompleteReadError, ConnectionError):
            for future in self._waiting.values():
                future.cancel()
        finally:
            self.ended.set()
            self._writer.close()


class RemoteApps:
    """Where the applications of one test report to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._calls: asyncio.Queue[AppCall] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """To be sent with a request whose application is to be driven from here."""
        return [(HEADER, str(self.path).encode())]

    async def wait_call(self) -> AppCall:
        """The next call that was not asked for yet."""
        return await within(self._calls.get(), "the application to be called")

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            pid, scope = await read_frame(reader)
            call = AppCall(pid, scope, reader, writer)
            self._calls.put_nowait(call)
            await call.listen()
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()
        finally:
            self._tasks.discard(task)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@contextlib.asynccontextmanager
async def remote_apps() -> AsyncIterator[RemoteApps]:
    with tempfile.TemporaryDirectory(prefix="remote-") as directory:
        apps = RemoteApps(Path(directory) / "apps")
        listener = await asyncio.start_unix_server(apps.accept, apps.path)
        try:
            yield apps
        finally:
            listener.close()
            await apps.close()
            await listener.wait_closed()


async def within(waiting: Coroutine[Any, Any, T] | asyncio.Future[T], what: str) -> T:
    """Await it, or fail with a sentence that says what did not happen."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await waiting
    except TimeoutError:
        raise AssertionError(f"waited {PATIENCE:.0f} s for {what}") from None

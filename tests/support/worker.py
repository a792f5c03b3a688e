"""The worker's side of a server in the test's own process: real sockets, no master.

    async with serve_app(app, http1={"keep_alive": 0.2}) as worker:
        reader, writer = await asyncio.open_connection(*worker.address)

What the master would do (accept, hand over) is done here; everything behind `TcpEndpoint.adopt` is
the real thing. For tests of `worker.asgi` and `worker.transport`; the whole server is
`tests.support.server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from asgiri.config import Config
from asgiri.ipc.messages import ListenerInfo
from asgiri.ipc.scoreboard import PAGE_SIZE, Cell, Scoreboard
from asgiri.worker.asgi.application import Application
from asgiri.worker.runtime import make_services
from asgiri.worker.transport.services import WorkerServices
from asgiri.worker.transport.tcp import TcpEndpoint
from asgiri.worker.transport.tls import ServerTls
from tests.support.certificates import certificates

try:
    from uvloop import Loop as EventLoop
except ImportError:
    from asyncio import SelectorEventLoop as EventLoop

PATIENCE = 10.0
"""Longest wait for anything, in seconds; far above what it takes."""
SWEEP_PERIOD = 0.02
"""Of the deadlines: so that tests may use short timeouts."""


@dataclass
class AppWorker:
    """A worker that serves one application on one loopback address."""

    services: WorkerServices
    endpoint: TcpEndpoint
    listening: socket.socket
    secure: bool

    @property
    def address(self) -> Any:
        """What to connect to: (host, port), or the path of a Unix socket."""
        name = self.listening.getsockname()
        return name[:2] if isinstance(name, tuple) else name

    def count(self, cell: Cell) -> int:
        """What the worker has counted so far."""
        self.services.requests.counters.publish()
        return self.services.scoreboard.get(cell)

    @property
    def refusals(self) -> dict[str, int]:
        return self.services.scoreboard.refusals()

    async def connect(self, **options: Any) -> Connection:
        """Open a client connection; TLS if the worker speaks it."""
        if isinstance(self.address, str):
            reader, writer = await asyncio.open_unix_connection(self.address, **options)
            return Connection(reader, writer)
        if self.secure:
            options.setdefault("ssl", certificates().client_context("http/1.1"))
            options.setdefault("server_hostname", "localhost")
        reader, writer = await asyncio.open_connection(*self.address, **options)
        return Connection(reader, writer)

    def drain(self) -> None:
        """What the runtime does when it is told to drain, without the pause in between."""
        self.services.draining = True
        for session in list(self.services.sessions):
            session.begin_drain()
        for session in list(self.services.sessions):
            session.finish_drain()

    async def wait_until(self, condition: Callable[[], Any]) -> None:
        """Return when the condition holds; fails when that takes too long."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.002)


@dataclass
class Connection:
    """A client that sends and reads bytes, and knows just enough of HTTP/1.1 to find a response's
    end.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Go without a word: the server sees RST, not the orderly end that a half-closing client
        also sends.
        """
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    def send(self, *lines: str | bytes, body: bytes = b"") -> None:
        """Send lines as the head of a request, then a body."""
        raw = [line.encode() if isinstance(line, str) else line for line in lines]
        self.writer.write(b"\r\n".join([*raw, b"", b""]) + body)

    def get(self, target: str = "/", *fields: str) -> None:
        self.send(f"GET {target} HTTP/1.1", "Host: example", *fields)

    async def read_head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        fields = dict(line.lower().split(": ", 1) for line in lines)
        return int(status_line.split(" ")[1]), fields

    async def read_body(self, fields: dict[str, str]) -> bytes:
        async with asyncio.timeout(PATIENCE):
            if "content-length" in fields:
                return await self.reader.readexactly(int(fields["content-length"]))
            if "transfer-encoding" not in fields:
                return await self.reader.read()
            body = b""
            while chunk := await self.read_chunk():
                body += chunk
            return body

    async def read_chunk(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def read_response(self) -> tuple[int, dict[str, str], bytes]:
        status, fields = await self.read_head()
        return status, fields, await self.read_body(fields)

    async def read_to_end(self) -> bytes:
        """Everything until the server closes in order; ConnectionResetError if it does not."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()


def make_config(**sections: dict[str, Any]) -> Config:
    sections.setdefault("app", {}).setdefault("target", "tests:app")
    return Config.from_values(sections)


class DirectLoop(EventLoop):
    """Marks that connections are to be adopted as those are which the master balances by request:
    when the request is there, and with no transport of the event loop as long as that goes.
    """

    PATIENCE = 0.03
    """Seconds after which a connection that says nothing is adopted too."""

    def when_readable(self, one: socket.socket, do: Callable[[socket.socket], None]) -> None:
        def once() -> None:
            self.remove_reader(one)
            late.cancel()
            do(one)

        self.add_reader(one, once)
        late = self.call_later(self.PATIENCE, once)


@contextlib.asynccontextmanager
async def serve_app(
    call: Callable[..., Awaitable[None]],
    *,
    secure: bool = False,
    unix_path: str = "",
    access_log: Any = None,
    sweep_period: float = SWEEP_PERIOD,
    **sections: dict[str, Any],
) -> AsyncIterator[AppWorker]:
    """Serve `call`; `sections` are those of the configuration."""
    if secure:
        files = certificates()
        sections["tls"] = {
            "certfile": (str(files.certfile),),
            "keyfile": (str(files.keyfile),),
            **sections.get("tls", {}),
        }
    config = make_config(**sections)
    loop = asyncio.get_running_loop()
    listening = listen(unix_path)
    listener = describe(listening, tls=secure)
    services = make_services(
        Application(call, loop),
        config=config,
        scoreboard=Scoreboard(memoryview(bytearray(PAGE_SIZE))),
        loop=loop,
        listeners=[listener],
        access_log=access_log,
        sweep_period=sweep_period,
    )
    server_tls = ServerTls(config.tls, config.http) if secure else None
    endpoint = TcpEndpoint(services, [listener], tls=server_tls)

    def accept() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = listening.accept()
                if isinstance(loop, DirectLoop):
                    loop.when_readable(connection, adopt_directly)
                else:
                    endpoint.adopt(listener.index, connection.detach())

    def adopt_directly(connection: socket.socket) -> None:
        endpoint.adopt(listener.index, connection.detach(), directly=True)

    loop.add_reader(listening, accept)
    worker = AppWorker(services, endpoint, listening, secure)
    try:
        yield worker
    finally:
        loop.remove_reader(listening)
        listening.close()
        for session in list(services.sessions):
            session.cancel_exchanges()
            session.close()
        endpoint.close_unopened()
        await worker.wait_until(lambda: not services.sessions and endpoint.is_empty)
        services.deadlines.close()
    # Nothing that was accepted may be forgotten, whatever a test did.
    assert worker.count(Cell.TCP_ADOPTED) == worker.count(Cell.TCP_CLOSED)
    assert worker.count(Cell.TCP_OPEN) == 0
    assert worker.count(Cell.REQUESTS_ACTIVE) == 0


def listen(unix_path: str) -> socket.socket:
    if unix_path:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(unix_path)
    else:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    listening.setblocking(False)
    return listening


def describe(listening: socket.socket, *, tls: bool) -> ListenerInfo:
    name = listening.getsockname()
    if isinstance(name, str):
        return ListenerInfo(0, "unix", "", 0, name, tls)
    return ListenerInfo(0, "tcp", name[0], name[1], "", tls)

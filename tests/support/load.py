"""Clients that ask all the time, one per way to reach the server, and what became of it.

    async with load(server) as clients:     # HTTP/1.1, 2, 3 and WebSockets, keep-alive
        ...                                 # reload, kill, recycle
    assert_nothing_failed(clients)

A client does what its RFC tells it to: it opens another connection after `connection: close`, a
GOAWAY or a close frame 1012, and repeats what was refused unprocessed. That is no failure.
Everything else that keeps a response from arriving whole is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from h2.errors import ErrorCodes

from asgiri.worker.protocol.http3_frames import ErrorCode
from tests.support.client import (
    ExchangeFailed,
    FailureKind,
    Response,
    ServerViolation,
    request,
)
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.server import Server
from tests.support.websocket_client import (
    Opcode,
    WebSocketClient,
    WebSocketRefused,
    open_websocket,
)

SERVICE_RESTART = 1012
REFUSED = frozenset({int(ErrorCodes.REFUSED_STREAM), int(ErrorCode.H3_REQUEST_REJECTED)})
ERRORS = (
    ExchangeFailed,
    ServerViolation,
    WebSocketRefused,
    OSError,
    EOFError,
    AssertionError,
    TimeoutError,
)
PATIENCE = 20.0


@dataclass
class Client:
    """One connection after the other, one request after the other."""

    name: str
    server: Server
    port: int
    pids: dict[int, float] = field(default_factory=dict)
    """Workers that answered, and when each did first."""
    served: int = 0
    connections: int = 0
    repeated: int = 0
    """Requests that the server refused unprocessed, or whose idle connection it had closed."""
    slowest: float = 0.0
    latencies: list[float] | None = None
    """Seconds that each answer took, where somebody wants to know."""
    failures: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    """Failures that the test has caused itself."""
    excuse: Callable[[Client], str | None] | None = None
    """What the test did to the connection in use, if that is why it failed."""
    stopped: bool = False
    pause: float = 0.0
    patience: float = PATIENCE
    """Seconds for one answer."""
    opened: float = 0.0
    """When the connection in use was begun."""
    asked: float = 0.0
    """When its latest request was begun."""
    worker: int | None = None
    """Who answered on it last."""

    async def run(self) -> None:
        while not self.stopped:
            self.opened = self.asked = time.monotonic()
            self.worker = None
            try:
                await self.converse()
            except ERRORS as error:
                self.fail(error)
                await asyncio.sleep(0.05)

    def fail(self, error: BaseException) -> None:
        text = f"{self.name}: {type(error).__name__}: {error}"
        if self.excuse is not None and (fault := self.excuse(self)):
            self.excused.append(f"{text} ({fault})")
        else:
            self.failures.append(text)

    async def wait_served_by(self, pids: set[int]) -> None:
        """One of these workers has answered."""
        async with asyncio.timeout(PATIENCE):
            while not pids & self.pids.keys():
                await asyncio.sleep(0.01)

    async def converse(self) -> None:
        """Use one connection up."""
        raise NotImplementedError

    async def measured(self, answer: Any) -> None:
        """Count one answer: the pid of who served it."""
        begin = self.asked = time.monotonic()
        async with asyncio.timeout(self.patience):
            pid = self.worker = int(await answer)
        now = time.monotonic()
        self.slowest = max(self.slowest, now - begin)
        if self.latencies is not None:
            self.latencies.append(now - begin)
        self.pids.setdefault(pid, now)
        self.served += 1
        if self.pause:
            await asyncio.sleep(self.pause)


async def fetch_pid(connection: Any, path: str = "/pid") -> bytes:
    response = await request(connection, "GET", path)
    assert response.status == 200, response
    return response.body


class KeepAlive(Client):
    """HTTP/1.1 in cleartext, where nothing may be lost at all."""

    secure = False

    async def converse(self) -> None:
        tls = self.server.client_context("http/1.1") if self.secure else None
        connection = await Http1Connection.connect("127.0.0.1", self.port, tls=tls)
        self.connections += 1
        served = self.served
        try:
            while not self.stopped:
                response = None

                async def answer() -> str | bytes:
                    nonlocal response
                    response = await self.ask(connection)
                    assert response.status == 200, response
                    return response.header("x-pid") or response.body

                await self.measured(answer())
                if (response.header("connection") or "").lower() == "close":
                    return
        except ExchangeFailed as error:
            # RFC 9112 §9.3.1: over TLS an idle connection may be closed while a request is on its
            # way, which a client repeats. Only behind an answer, and only before the next began.
            if not (self.secure and self.served > served and "inside b''" in str(error)):
                raise
            self.repeated += 1
        finally:
            await connection.close()

    async def ask(self, connection: Http1Connection) -> Response:
        return await request(connection, "GET", "/pid")


class SecureKeepAlive(KeepAlive):
    """HTTP/1.1 over TLS."""

    secure = True


class Multiplexed(Client):
    """HTTP/2 and 3: until a GOAWAY."""

    async def connect(self) -> Any:
        raise NotImplementedError

    def is_going_away(self, connection: Any) -> bool:
        raise NotImplementedError

    async def converse(self) -> None:
        connection = await self.connect()
        self.connections += 1
        try:
            while not self.stopped and not self.is_going_away(connection):
                try:
                    await self.measured(self.ask(connection))
                except ExchangeFailed as error:
                    if not self.is_refusal(connection, error):
                        raise
                    self.repeated += 1
                    return
        finally:
            await connection.close()

    async def ask(self, connection: Any) -> str | bytes:
        """The pid of who answered."""
        return await fetch_pid(connection)

    def is_refusal(self, connection: Any, error: ExchangeFailed) -> bool:
        return error.kind is FailureKind.RESET and error.code in REFUSED


class Http2(Multiplexed):
    async def connect(self) -> Http2Connection:
        tls = self.server.client_context("h2")
        return await Http2Connection.connect("127.0.0.1", self.port, tls=tls)

    def is_going_away(self, connection: Http2Connection) -> bool:
        return connection.goaway is not None

    def is_refusal(self, connection: Http2Connection, error: ExchangeFailed) -> bool:
        if super().is_refusal(connection, error):
            return True
        # RFC 9113 §6.8: streams above the last one of a GOAWAY were not processed.
        newest = connection.h2.highest_outbound_stream_id
        return connection.goaway is not None and connection.goaway[1] < newest


class Http3(Multiplexed):
    async def connect(self) -> Http3Connection:
        connection = await Http3Connection.connect("127.0.0.1", self.port)
        connection.patience = self.patience
        return connection

    def is_going_away(self, connection: Http3Connection) -> bool:
        return bool(connection.goaways)

    def is_refusal(self, connection: Http3Connection, error: ExchangeFailed) -> bool:
        if super().is_refusal(connection, error):
            return True
        # RFC 9114 §5.2: the same for requests at or above the ID of a GOAWAY.
        newest = connection.quic.get_next_available_stream_id() - 4
        return bool(connection.goaways) and connection.goaways[-1] <= newest


class Streams(Multiplexed):
    """Several requests at a time: small ones, uploads and downloads larger than any window."""

    UPLOAD = os.urandom(200_000)
    DOWNLOAD = 300_000

    async def converse(self) -> None:
        connection = await self.connect()
        self.connections += 1
        kinds = (self._small, self._upload, self._download) * 2
        streams = [asyncio.create_task(self._repeat(connection, kind)) for kind in kinds]
        try:
            await asyncio.gather(*streams)
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
            await connection.close()

    async def _repeat(self, connection: Any, ask: Callable[[Any], Any]) -> None:
        while not self.stopped and not self.is_going_away(connection):
            try:
                await self.measured(ask(connection))
            except ExchangeFailed as error:
                if not self.is_refusal(connection, error):
                    raise
                self.repeated += 1
                return

    async def _small(self, connection: Any) -> bytes:
        return await fetch_pid(connection)

    async def _upload(self, connection: Any) -> int:
        response = await request(connection, "POST", "/hash", body=self.UPLOAD)
        assert response.status == 200, response
        told = json.loads(response.body)
        assert told["sha256"] == hashlib.sha256(self.UPLOAD).hexdigest(), told
        return int(told["pid"])

    async def _download(self, connection: Any) -> str:
        response = await request(connection, "GET", f"/bytes?size={self.DOWNLOAD}")
        assert len(response.body) == self.DOWNLOAD, response.status
        return response.header("x-pid") or ""


class Streams2(Streams, Http2):
    pass


class Streams3(Streams, Http3):
    pass


class WebSockets(Client):
    """Echo over HTTP/1.1, until the server closes with 1012."""

    async def connect(self) -> Any:
        tls = self.server.client_context("http/1.1")
        return await Http1Connection.connect("127.0.0.1", self.port, tls=tls)

    async def converse(self) -> None:
        connection = await self.connect()
        self.connections += 1
        try:
            websocket = await open_websocket(connection, "/pid")
            self.worker = int(websocket.head.header("x-pid") or 0) or None
            number = 0
            while not self.stopped and await self._exchange(websocket, f"message {number}"):
                number += 1
            if self.stopped:
                await websocket.send_close()
        except ExchangeFailed as error:
            if error.code not in REFUSED:
                raise
            self.repeated += 1
        finally:
            await connection.close()

    async def _exchange(self, websocket: WebSocketClient, text: str) -> bool:
        begin = self.asked = time.monotonic()
        await websocket.send_text(text)
        async with asyncio.timeout(self.patience):
            while (frame := await websocket.read_frame()).opcode is Opcode.PING:
                await websocket.send_frame(Opcode.PONG, frame.payload)
        if frame.opcode is Opcode.CLOSE:
            code = int.from_bytes(frame.payload[:2])
            assert code == SERVICE_RESTART, code
            await websocket.send_close(code)
            self.repeated += 1
            return False
        assert frame.payload == text.encode(), frame
        self.slowest = max(self.slowest, time.monotonic() - begin)
        self.served += 1
        if self.pause:
            await asyncio.sleep(self.pause)
        return True


class WebSockets2(WebSockets):
    async def connect(self) -> Http2Connection:
        tls = self.server.client_context("h2")
        return await Http2Connection.connect("127.0.0.1", self.port, tls=tls)


class WebSockets3(WebSockets):
    async def connect(self) -> Http3Connection:
        connection = await Http3Connection.connect("127.0.0.1", self.port)
        connection.patience = self.patience
        return connection


@contextlib.asynccontextmanager
async def load(
    server: Server, kinds: Sequence[Callable[..., Client]], *, each: int = 1, pause: float = 0.01
) -> AsyncIterator[list[Client]]:
    """Run clients of these kinds; `KeepAlive` asks the cleartext port, the others the other one."""
    plain, secure = ports(server)
    clients = []
    for kind in kinds:
        port = plain if kind is KeepAlive else secure
        name = getattr(kind, "__name__", "client")
        clients += [kind(name=name, server=server, port=port, pause=pause) for _ in range(each)]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    try:
        while not all(client.served or client.failures for client in clients):
            await asyncio.sleep(0.01)
        yield clients
    finally:
        for client in clients:
            client.stopped = True
        await asyncio.wait(tasks, timeout=PATIENCE)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def ports(server: Server) -> tuple[int, int]:
    """Return the cleartext port and the other one; the same if there is one only."""
    admin = re.search(r"admin listens on http://[\d.]+:(\d+)", server.log.text)
    not_ours = int(admin[1]) if admin else 0
    listening = [port for _, port in server.addresses("tcp") if port != not_ours]
    datagrams = {port for _, port in server.addresses("udp")}
    secure = next((port for port in listening if port in datagrams), listening[0])
    plain = next((port for port in listening if port not in datagrams), secure)
    return plain, secure


def assert_nothing_failed(clients: Sequence[Client]) -> None:
    failures = [failure for client in clients for failure in client.failures]
    assert not failures, f"{len(failures)} failures; {summary(clients)}\n" + "\n".join(
        failures[:20]
    )
    assert all(client.served for client in clients), summary(clients)


def summary(clients: Sequence[Client]) -> str:
    return "; ".join(
        f"{c.name}: {c.served} served on {c.connections} connections, {c.repeated} repeated,"
        f" slowest {c.slowest * 1000:.0f} ms"
        for c in clients
    )

"""Clients of every kind, and whose fault it is when one of them fails."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.soak.app import EVENTS
from tests.support import load
from tests.support.client import Response, request
from tests.support.http1_client import Http1Connection
from tests.support.load import (
    Client,
    Http2,
    Http3,
    KeepAlive,
    SecureKeepAlive,
    WebSockets,
    WebSockets2,
    WebSockets3,
)
from tests.support.load import ports as server_ports
from tests.support.server import Server

PAUSE = 0.05
PATIENCE = 120.0
"""Seconds for one answer: what a machine takes on which everything else is done first. A request
that is lost takes for ever."""


# Event streams


async def read_events(connection: Any) -> Response:
    response = await request(connection, "GET", "/events")
    assert response.status == 200, response
    events = response.body.split(b"\n\n")[:-1]
    assert len(events) == EVENTS, response.body
    return response


class Events1(KeepAlive):
    async def ask(self, connection: Http1Connection) -> Response:
        return await read_events(connection)


class Events2(Http2):
    async def ask(self, connection: Any) -> str:
        return (await read_events(connection)).header("x-pid") or ""


class Events3(Http3):
    async def ask(self, connection: Any) -> str:
        return (await read_events(connection)).header("x-pid") or ""


# Bodies larger than any window


class Streams2(load.Streams2):
    UPLOAD = load.Streams.UPLOAD[:80_000]
    DOWNLOAD = 100_000


class Streams3(load.Streams3):
    UPLOAD = load.Streams.UPLOAD[:80_000]
    DOWNLOAD = 100_000


class Transfers1(SecureKeepAlive):
    """An upload, a download, a small request; and from the beginning."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._turns = itertools.cycle([self._upload, self._download, super().ask])

    async def ask(self, connection: Http1Connection) -> Response:
        return await next(self._turns)(connection)

    async def _upload(self, connection: Http1Connection) -> Response:
        body = Streams2.UPLOAD
        response = await request(connection, "POST", "/hash", body=body)
        assert response.status == 200, response
        told = json.loads(response.body)
        assert told["sha256"] == hashlib.sha256(body).hexdigest(), told
        response.headers.append((b"x-pid", b"%d" % told["pid"]))
        return response

    async def _download(self, connection: Http1Connection) -> Response:
        response = await request(connection, "GET", f"/bytes?size={Streams2.DOWNLOAD}")
        assert len(response.body) == Streams2.DOWNLOAD, response.status
        return response


PLAIN = (KeepAlive, Events1)
TCP = (SecureKeepAlive, Transfers1, Http2, Streams2, Events2, WebSockets, WebSockets2)
QUIC = (Http3, Streams3, Events3, WebSockets3)


# Blame


@dataclass
class Blame:
    """What was done to the server and to the network, and whom it may have hit.

    A killed worker may fail what it was serving: a client whose connection it had, or one that had
    not been answered yet on a connection begun before the kill. A cut may fail who went that way.
    """

    kills: dict[int, float] = field(default_factory=dict)
    """When each pid was killed."""
    cuts: list[tuple[int, float]] = field(default_factory=list)
    """Which port of a proxy was cut, and when."""

    def killed(self, pid: int) -> None:
        self.kills[pid] = time.monotonic()

    def cut(self, port: int) -> None:
        self.cuts.append((port, time.monotonic()))

    def excuse(self, client: Client) -> str | None:
        for port, at in self.cuts:
            if port == client.port and client.opened <= at:
                return "its network was cut"
        for pid, at in self.kills.items():
            if client.worker == pid and client.opened <= at:
                return f"its worker {pid} was killed"
            # Who has it now is known only for connections that stay with who answered once.
            since = client.asked if isinstance(client, KeepAlive) else client.opened
            if (client.worker is None or isinstance(client, KeepAlive)) and since <= at:
                return f"{pid} was killed while it waited"
        return None


@dataclass
class Crowd:
    """All clients; they can be sent home and called back."""

    server: Server
    blame: Blame
    clients: list[Client]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        server: Server,
        blame: Blame,
        ports: dict[type[Client], Sequence[int]],
        pause: float = PAUSE,
    ) -> Crowd:
        """One client of each kind for each port that it is to use."""
        direct = server_ports(server)
        clients = [
            kind(
                name=kind.__name__ + ("" if port in direct else " (bad network)"),
                server=server,
                port=port,
                pause=pause,
                patience=PATIENCE,
                excuse=blame.excuse,
            )
            for kind, each in ports.items()
            for port in each
        ]
        return cls(server, blame, clients)

    def begin(self) -> None:
        for client in self.clients:
            client.stopped = False
        self.tasks = [asyncio.create_task(client.run()) for client in self.clients]

    async def end(self) -> None:
        """Return when everybody has what it asked for and has closed its connection."""
        for client in self.clients:
            client.stopped = True
        done, late = await asyncio.wait(self.tasks, timeout=PATIENCE + 10)
        for task in late:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert not late, f"{len(late)} clients did not come to an end"
        for task in done:
            task.result()

    async def wait_progress(self, answers: int = 3) -> None:
        """Everybody has been answered so often since this call."""
        goals = [client.served + answers for client in self.clients]
        deadline = time.monotonic() + 2 * PATIENCE
        while any(c.served < goal for c, goal in zip(self.clients, goals, strict=True)):
            if time.monotonic() > deadline:
                behind = [
                    client.name
                    for client, goal in zip(self.clients, goals, strict=True)
                    if client.served < goal
                ]
                raise AssertionError("\n".join(["no progress:", *behind, *self.failures[:20]]))
            await asyncio.sleep(0.02)

    @property
    def served(self) -> int:
        return sum(client.served for client in self.clients)

    @property
    def failures(self) -> list[str]:
        return [failure for client in self.clients for failure in client.failures]

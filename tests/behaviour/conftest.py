"""Fixtures of the behaviour suite: `version` runs through the table, servers live for a session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from tests.behaviour.versions import SERVERS, VERSIONS, ServerKind, Version
from tests.support.client import ClientConnection
from tests.support.remote_app import RemoteApps, remote_apps
from tests.support.server import Server, ServerFailed, ServerOptions

Connect = Callable[..., Awaitable[ClientConnection]]


class Servers:
    """The servers of this session, started when they are first needed."""

    def __init__(self) -> None:
        self._running: dict[ServerKind, Server] = {}

    def get(self, kind: ServerKind) -> Server:
        if kind not in self._running:
            setup = SERVERS[kind]
            options = ServerOptions(workers=2, tls=setup.tls, options=setup.options)
            self._running[kind] = Server.start(options)
        return self._running[kind]

    def stop(self) -> None:
        failures = []
        for server in self._running.values():
            try:
                server.stop()
            except ServerFailed as failure:
                failures.append(failure)
        if failures:
            raise failures[0]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request: pytest.FixtureRequest) -> Version:
    return request.param


@pytest.fixture
def server(servers: Servers, version: Version) -> Iterator[Server]:
    """The version's server; what it complains of during a test fails that test."""
    server = servers.get(version.server)
    start = server.log.end
    yield server
    assert server.process.poll() is None, "the master has gone"
    if complaints := server.log.complaints([], start):
        raise ServerFailed("\n".join(complaints))


@pytest.fixture
async def connect(version: Version, server: Server) -> AsyncIterator[Connect]:
    """Opens connections of the version under test and closes them at the end."""
    opened: list[ClientConnection] = []

    async def connect(**options: object) -> ClientConnection:
        connection = await version.connect(server, **options)
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        await connection.close()


@pytest.fixture
async def connection(connect: Connect) -> ClientConnection:
    return await connect()


@pytest.fixture
async def apps() -> AsyncIterator[RemoteApps]:
    """Applications that the test drives itself; see `remote_app`."""
    async with remote_apps() as apps:
        yield apps

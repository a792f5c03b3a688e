"""Every engine that the behaviour suite runs over. A new one needs an entry in VERSIONS only."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.client import ClientConnection
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.server import Server


class ServerKind(enum.Enum):
    """Servers that versions share; each is started when the first test asks for it."""

    CLEARTEXT = enum.auto()
    CLEARTEXT_H11 = enum.auto()
    TLS = enum.auto()
    APP_THREAD = enum.auto()
    APP_THREAD_TLS = enum.auto()


@dataclass(frozen=True, slots=True)
class ServerSetup:
    tls: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


MAX_MESSAGE = 1 << 20
"""Of a WebSocket; small, so that a test passes it soon."""
# A QUIC client that vanished is waited for when the server stops; not for long in a test.
COMMON = {"graceful_timeout": 2, "ws_max_size": MAX_MESSAGE}
SERVERS = {
    ServerKind.CLEARTEXT: ServerSetup(options={**COMMON, "http1_parser": "httptools"}),
    ServerKind.CLEARTEXT_H11: ServerSetup(options={**COMMON, "http1_parser": "h11"}),
    ServerKind.TLS: ServerSetup(tls=True, options={**COMMON, "http3": True}),
    ServerKind.APP_THREAD: ServerSetup(options={**COMMON, "app_thread": True}),
    ServerKind.APP_THREAD_TLS: ServerSetup(
        tls=True, options={**COMMON, "http3": True, "app_thread": True}
    ),
}


@dataclass(frozen=True, slots=True)
class Version:
    """One way to talk HTTP to the server."""

    name: str
    http_version: str
    """As ASGI spells it."""
    server: ServerKind
    connect: Callable[..., Awaitable[ClientConnection]]
    """Called with the server, and the client's own options."""

    @property
    def multiplexed(self) -> bool:
        return self.http_version != "1.1"

    @property
    def tls(self) -> bool:
        return SERVERS[self.server].tls


async def connect_http1(server: Server, **options: Any) -> Http1Connection:
    tls = server.client_context("http/1.1")
    return await Http1Connection.connect("127.0.0.1", server.port, tls=tls, **options)


async def connect_http3(
    server: Server, *, receive_buffer: int | None = None, **options: Any
) -> Http3Connection:
    """Streams have windows of their own, so a small socket buffer adds nothing."""
    return await Http3Connection.connect("127.0.0.1", server.port, **options)


async def connect_http2(server: Server, **options: Any) -> Http2Connection:
    tls = server.client_context("h2", "http/1.1")
    return await Http2Connection.connect("127.0.0.1", server.port, tls=tls, **options)


VERSIONS = [
    Version("http1-httptools", "1.1", ServerKind.CLEARTEXT, connect_http1),
    Version("http1-h11", "1.1", ServerKind.CLEARTEXT_H11, connect_http1),
    Version("http1-tls", "1.1", ServerKind.TLS, connect_http1),
    Version("http2", "2", ServerKind.CLEARTEXT, connect_http2),
    Version("http2-tls", "2", ServerKind.TLS, connect_http2),
    Version("http3", "3", ServerKind.TLS, connect_http3),
    # The application in a thread of its own: the seam knows nothing of versions, so two are enough.
    Version("http1-thread", "1.1", ServerKind.APP_THREAD, connect_http1),
    Version("http3-thread", "3", ServerKind.APP_THREAD_TLS, connect_http3),
]

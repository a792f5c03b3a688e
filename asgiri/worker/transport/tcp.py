"""Adopts the TCP connections that the master accepted, and gives each to the session of the version
it speaks.

Every descriptor that comes is counted twice: TCP_ADOPTED when it is taken, TCP_CLOSED when it is
gone, whatever happens in between. The master dispatches by the difference.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, cast

from asgiri.config import Http1Config
from asgiri.ipc.channel import OVERDUE
from asgiri.ipc.messages import ListenerInfo
from asgiri.ipc.scoreboard import Cell, Refusal
from asgiri.worker.asgi.scope import Address, ConnectionScope
from asgiri.worker.asgi.trust import TrustedPeers
from asgiri.worker.protocol.http1 import Http1Connection
from asgiri.worker.protocol.http1_h11 import H11Parser
from asgiri.worker.protocol.http1_head import FieldParser, SectionReader
from asgiri.worker.protocol.http1_llhttp import LlhttpParser
from asgiri.worker.protocol.http2 import Http2Connection
from asgiri.worker.protocol.sniff import Sniffed, sniff
from asgiri.worker.transport.connection import TcpConnection
from asgiri.worker.transport.direct import DirectProtocol, DirectTransport, Successor
from asgiri.worker.transport.http1 import Http1Session, SwitchToHttp2
from asgiri.worker.transport.http2 import Http2Session
from asgiri.worker.transport.proxied import read_proxy_header
from asgiri.worker.transport.services import WorkerServices
from asgiri.worker.transport.tls_stream import TlsTransport

if TYPE_CHECKING:
    from asgiri.worker.transport.tls import ServerTls

logger = logging.getLogger("asgiri.worker")

WILDCARDS: Final = frozenset(("", "0.0.0.0", "::"))  # noqa: S104
HANDSHAKE_REFUSALS: Final = {
    "HTTP_REQUEST": Refusal.PLAINTEXT_ON_TLS,
    "NO_APPLICATION_PROTOCOL": Refusal.TLS_NO_PROTOCOL,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": Refusal.TLS_CLIENT_CERTIFICATE,
    "CERTIFICATE_VERIFY_FAILED": Refusal.TLS_CLIENT_CERTIFICATE,
}
"""By what OpenSSL calls it."""


class TcpEndpoint:
    """Owns every TCP connection of a worker until it is lost."""

    def __init__(
        self,
        services: WorkerServices,
        listeners: Iterable[ListenerInfo],
        *,
        tls: ServerTls | None,
    ) -> None:
        self.services: Final = services
        self.tls = tls
        """Replaced when certificates are reloaded; connections that are open keep theirs."""
        http1 = services.config.http1
        self._sections = SectionReader(make_http1_parser(http1), http1)
        self._trusted = TrustedPeers(services.config.http.forwarded_allow_ips)
        self.unopened: Final[set[NewConnection]] = set()
        """Adopted, but nothing has come that tells the version."""
        self._listeners = {listener.index: listener for listener in listeners}
        self._handshakes: set[asyncio.Task[None]] = set()
        listen = services.config.listen
        self._proxies = (
            TrustedPeers(listen.proxy_protocol_allow_ips) if listen.proxy_protocol else None
        )
        """Who sends the header of the PROXY protocol; None when nobody has to."""
        self._unannounced: set[asyncio.Task[None]] = set()
        """Connections whose header has not come."""

    @property
    def is_empty(self) -> bool:
        """No connection is on its way to a session. (Sessions are `WorkerServices.sessions`.)"""
        return not self.unopened and not self._unannounced

    def http1_engine(self) -> Http1Connection:
        """Make the engine of one connection."""
        services = self.services
        return Http1Connection(self._sections, services.config.http1, services.requests.defaults)

    def http2_engine(self, h2c_settings: bytes | None = None) -> Http2Connection:
        """Make the engine of one connection. ValueError if the settings of an upgrade are wrong."""
        services = self.services
        config = services.config
        return Http2Connection(
            config.http2, config.flow, now=services.now, h2c_settings=h2c_settings
        )

    @property
    def may_upgrade_some(self) -> bool:
        """Whether any client of cleartext HTTP/1.1 may go on with HTTP/2."""
        http = self.services.config.http
        return http.http2 and http.h2c_upgrade is not False

    def may_upgrade(self, client: Address | None) -> bool:
        """Whether this one may, if any may."""
        http = self.services.config.http
        return http.h2c_upgrade is True or (client[0] if client else None) in self._trusted

    def adopt(self, listener_index: int, fd: int, *, directly: bool = False) -> bool:
        """Own a connection that the master accepted. Never raises for what the peer did.

        `listener_index` may carry OVERDUE. `directly`: serve what it has sent before this returns;
        then it is true that the connection's request has begun, or that there will be none.
        """
        overdue = listener_index & OVERDUE != 0
        listener_index &= ~OVERDUE
        scoreboard = self.services.scoreboard
        scoreboard.add(Cell.TCP_ADOPTED)
        scoreboard.add(Cell.TCP_OPEN)
        listener = self._listeners.get(listener_index)
        if listener is None:
            # A mistake of ours: the connection is lost, but neither leaked nor miscounted.
            logger.error("a connection of listener %d came, which is not ours", listener_index)
            os.close(fd)
            self.closed()
            return True
        connection = _socket_of(fd, listener)
        try:
            client, server = _addresses(connection, listener)
        except OSError:
            # The peer has reset it while it was on its way to us.
            connection.close()
            self.closed()
            return True
        if self._proxies is not None:
            task = self.services.loop.create_task(
                self._open_announced(listener, connection, client, server, overdue=overdue),
                context=self.services.requests.application.context.copy(),
            )
            self._unannounced.add(task)
            task.add_done_callback(self._unannounced.discard)
            return False
        new = NewConnection(self, listener.index, self._tls_of(listener), client, server)
        new.overdue = overdue
        if directly and new.tls is None:
            return self._serve_directly(new, connection)
        self._begin(new, connection)
        return False

    def _serve_directly(self, new: NewConnection, connection: socket.socket) -> bool:
        direct = DirectTransport(self.services.loop, connection, new, self._promote)
        self.unopened.add(new)
        new.connection_made(direct)
        try:
            data = direct.read()
        except OSError:
            direct.abort()
            return True
        if data is None:
            direct.promote()
            return False
        if data:
            new.data_received(data)
            self.services.requests.application.when_begun(lambda: _end_or_promote(direct))
        else:
            direct.close()
        return True

    def _promote(self, successor: Successor, connection: socket.socket) -> None:
        task = self.services.requests.application.start(self._continue(successor, connection))
        if task is not None:
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _continue(self, successor: Successor, connection: socket.socket) -> None:
        loop = self.services.loop
        try:
            await loop.connect_accepted_socket(lambda: successor, connection)
        except OSError as error:
            connection.close()
            successor.failed(error)

    def _tls_of(self, listener: ListenerInfo) -> ServerTls | None:
        return self.tls if listener.tls and not listener.insecure else None

    def _begin(self, new: NewConnection, connection: socket.socket) -> None:
        self.unopened.add(new)
        # Eager: without TLS all but the last step happens here and now.
        task = self.services.requests.application.start(self._open(new, connection))
        if task is not None:
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _open_announced(
        self,
        listener: ListenerInfo,
        connection: socket.socket,
        client: Address | None,
        server: Address | None,
        *,
        overdue: bool,
    ) -> None:
        """Open a connection behind the header that says whose it is."""
        refusal = Refusal.BAD_PROXY_HEADER
        try:
            if (client[0] if client else None) not in (self._proxies or ()):
                refusal = Refusal.UNTRUSTED_PROXY
                raise ValueError("not among --proxy-protocol-allow-ips")
            patience = self.services.config.http1.header_timeout
            header = await read_proxy_header(connection, patience)
        except (ValueError, OSError, EOFError, asyncio.CancelledError) as error:
            if not isinstance(error, asyncio.CancelledError):
                self.services.scoreboard.refuse(refusal)
                logger.debug("connection of %s without PROXY header: %r", client, error)
            connection.close()
            self.closed()
            return
        client, server = header.client or client, header.server or server
        new = NewConnection(self, listener.index, self._tls_of(listener), client, server)
        new.overdue = overdue
        new.may_move = False
        self._begin(new, connection)

    async def _open(self, new: NewConnection, connection: socket.socket) -> None:
        loop = self.services.loop
        protocol = new if new.tls is None else self._secured(new, new.tls)
        try:
            await loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError as error:
            new.failed(error)
            connection.close()

    def _secured(self, new: NewConnection, tls: ServerTls) -> TlsTransport:
        return TlsTransport(
            self.services.loop,
            new,
            tls.context,
            offered=tls.protocols,
            handshake_timeout=self.services.config.tls.handshake_timeout,
            failed=new.failed,
        )

    def closed(self) -> None:
        """A connection is gone."""
        scoreboard = self.services.scoreboard
        scoreboard.add(Cell.TCP_CLOSED)
        scoreboard.add(Cell.TCP_OPEN, -1)

    def http2_closed(self) -> None:
        """One that spoke HTTP/2 is gone."""
        self.services.scoreboard.add(Cell.HTTP2_OPEN, -1)
        self.closed()

    def lost(self, count: int) -> None:
        """Connections came that there was no room for: they are gone as soon as they were taken."""
        scoreboard = self.services.scoreboard
        scoreboard.add(Cell.TCP_ADOPTED, count)
        scoreboard.add(Cell.TCP_CLOSED, count)

    def hand_back_unopened(self) -> None:
        """Let another worker serve those that have not said anything yet, if the master wants."""
        hand_back = self.services.hand_back
        if hand_back is not None and hand_back.wanted:
            for new in list(self.unopened):
                new.hand_back()

    def close_unopened(self) -> None:
        """Drop the connections that have not said anything yet: the worker's patience is over."""
        for new in list(self.unopened):
            new.abort()
        for task in self._unannounced:
            task.cancel()


class NewConnection(DirectProtocol):
    """An adopted connection until its version is known: by ALPN after the TLS handshake, else by
    the first bytes.
    """

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_client",
        "_endpoint",
        "_handed_back",
        "_listener",
        "_server",
        "_transport",
        "deadline",
        "may_move",
        "overdue",
        "tls",
    )

    def __init__(
        self,
        endpoint: TcpEndpoint,
        listener: int,
        tls: ServerTls | None,
        client: Address | None,
        server: Address | None,
    ) -> None:
        self._endpoint = endpoint
        self._listener = listener
        self.tls: Final = tls
        self._client = client
        self._server = server
        self._buffer = b""
        self._handed_back = False
        self._transport: asyncio.Transport | None = None
        self.overdue = False
        self.may_move = tls is None
        """Another worker could serve it: all that is known of it is in the kernel."""
        config = endpoint.services.config
        self.deadline = endpoint.services.now() + config.http1.header_timeout

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        self._endpoint.services.deadlines.add(self)
        if self.tls is not None:
            # The time that the handshake took has had its own limit.
            services = self._endpoint.services
            self.deadline = services.now() + services.config.http1.header_timeout
            match transport.get_extra_info("ssl_object").selected_alpn_protocol():
                case "h2":
                    self._become_http2(transport)
                case "http/1.1" | "http/1.0":
                    self._become_http1(transport)
                # None: a client without ALPN. Its first bytes tell, as they do without TLS.

    def go_on_with(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        data = self._buffer + data
        match sniff(data):
            case Sniffed.NEED_MORE:
                self._buffer = data
            case Sniffed.HTTP2:
                self._become_http2(self._transport).data_received(data)
            case Sniffed.HTTP1:
                self._become_http1(self._transport).data_received(data)

    def eof_received(self) -> bool:
        if not self._buffer:
            return False
        assert self._transport is not None
        session = self._become_http1(self._transport)
        session.data_received(self._buffer)
        return session.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        if not self._handed_back:
            self._endpoint.closed()

    # The deadline: nothing has come in time

    def deadline_reached(self, now: float) -> None:
        assert self._transport is not None
        self._become_http1(self._transport).deadline_reached(now)

    # For the endpoint

    def failed(self, error: Exception) -> None:
        """The TLS handshake failed: no transport was ever made."""
        scoreboard = self._endpoint.services.scoreboard
        scoreboard.add(Cell.TLS_HANDSHAKE_FAILURES)
        if isinstance(error, ConnectionAbortedError):
            # What asyncio and uvloop raise when `ssl_handshake_timeout` is over.
            scoreboard.refuse(Refusal.TLS_HANDSHAKE_TIMEOUT)
        elif isinstance(error, ssl.SSLError) and error.reason in HANDSHAKE_REFUSALS:
            scoreboard.refuse(HANDSHAKE_REFUSALS[error.reason])
        logger.debug("TLS handshake with %s failed: %s", self._client, error)
        self._leave()
        self._endpoint.closed()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def hand_back(self) -> None:
        """Give it to the master if nothing of it has been read."""
        if not self.may_move or self._buffer or self._transport is None:
            return
        self._transport.pause_reading()
        if self._give_back(self._transport.get_extra_info("socket").fileno(), 0.0):
            self._handed_back = True
            self._transport.abort()
        else:
            self._transport.resume_reading()

    # Internals

    def _give_back(self, fd: int, idle_share: float) -> bool:
        hand_back = self._endpoint.services.hand_back
        return hand_back is not None and hand_back.give(self._listener, fd, idle_share)

    def _become_http1(self, transport: asyncio.Transport) -> Http1Session:
        endpoint = self._endpoint
        endpoint.services.scoreboard.add(Cell.HTTP1_OPENED)
        session = Http1Session(
            endpoint.services,
            endpoint.http1_engine(),
            self._scopes(transport),
            transport,
            endpoint.closed,
            head_deadline=self.deadline,
            switch_to_http2=self._switch_to_http2(transport),
            hand_back=self._give_back if self.may_move else None,
        )
        self._hand_over(transport, session)
        if not endpoint.services.config.http.http1:
            session.refuse()
        return session

    def _become_http2(self, transport: asyncio.Transport) -> Http2Session:
        session = self._http2_session(transport, self._endpoint.http2_engine())
        self._hand_over(transport, session)
        if self._endpoint.services.config.http.http2:
            session.begin()
        else:
            session.refuse()
        return session

    def _http2_session(self, transport: asyncio.Transport, engine: Http2Connection) -> Http2Session:
        endpoint = self._endpoint
        endpoint.services.scoreboard.add(Cell.HTTP2_OPENED)
        endpoint.services.scoreboard.add(Cell.HTTP2_OPEN)
        return Http2Session(
            endpoint.services, engine, self._scopes(transport), transport, endpoint.http2_closed
        )

    def _switch_to_http2(self, transport: asyncio.Transport) -> SwitchToHttp2 | None:
        if self.tls is not None or not self._endpoint.may_upgrade_some:
            return None

        def switch(settings: bytes) -> Http2Session | None:
            # Asked only now: 0.5 us for each connection, and few want it.
            if not self._endpoint.may_upgrade(self._client):
                return None
            try:
                engine = self._endpoint.http2_engine(settings)
            except ValueError as error:
                self._endpoint.services.scoreboard.refuse(Refusal.HTTP1_UPGRADE_REFUSED)
                logger.debug("%s", error)
                return None
            return self._http2_session(transport, engine)

        return switch

    def _hand_over(self, transport: asyncio.Transport, session: TcpConnection) -> None:
        session.overdue = self.overdue
        transport.set_protocol(session)
        self._leave()

    def _scopes(self, transport: asyncio.Transport) -> ConnectionScope:
        tls = None
        if self.tls is not None:
            tls = self.tls.extension(transport.get_extra_info("ssl_object"))
        return self._endpoint.services.scopes.connection(
            client=self._client, server=self._server, secure=tls is not None, tls=tls
        )

    def _leave(self) -> None:
        self._endpoint.unopened.discard(self)
        self._endpoint.services.deadlines.discard(self)


def make_http1_parser(config: Http1Config) -> FieldParser:
    """Return the parser that the configuration names; all connections share it."""
    return H11Parser() if config.parser == "h11" else LlhttpParser()


def _socket_of(fd: int, listener: ListenerInfo) -> socket.socket:
    # All three given: otherwise Python asks the system for each of them.
    if listener.kind == "unix":
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
    family = socket.AF_INET6 if ":" in listener.host else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)


def _end_or_promote(direct: DirectTransport) -> None:
    protocol = direct.get_protocol()
    if isinstance(protocol, Http1Session) and protocol.is_wanted_back:
        protocol.hand_back_if_idle()
    if not direct.is_over:
        direct.promote()


def _addresses(
    connection: socket.socket, listener: ListenerInfo
) -> tuple[Address | None, Address | None]:
    """Client and server as a scope has them. A peer on a Unix socket has no address."""
    if listener.kind == "unix":
        return None, (listener.path, None)
    # IPv6: flow label and scope id have no place in a scope.
    client = connection.getpeername()[:2]
    if listener.host in WILDCARDS:
        return client, connection.getsockname()[:2]
    return client, (listener.host, listener.port)

"""The server in the caller's own process and event loop: no master, no other process.

For tests, notebooks and applications that are objects, which no other interpreter could import. The
connections, protocols and limits are those of a worker; what a master adds is not there: balance,
reload, recovery.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import selectors
import socket
import time
from typing import Final

from asgiri.config import Config
from asgiri.errors import StartError
from asgiri.ipc.connection_id import ConnectionIdCodec, ConnectionIdMint
from asgiri.ipc.records import LocalAddress, PeerTable, Record
from asgiri.ipc.scoreboard import PAGE_SIZE, Scoreboard
from asgiri.ipc.tokens import QuicSecrets, ResetTokens, RetryTokens
from asgiri.master.admission import RetryMode
from asgiri.master.binding import Listener, UnixAccess
from asgiri.master.listeners import Listeners, open_listeners
from asgiri.master.quic_secrets import load_quic_secrets
from asgiri.master.receiver import parse_local_address, source_of
from asgiri.master.steering import Steering
from asgiri.worker.asgi.application import Application
from asgiri.worker.asgi.https import with_https_policy
from asgiri.worker.asgi.lifespan import Lifespan, LifespanError
from asgiri.worker.asgi.loader import LoadedApplication
from asgiri.worker.runtime import make_services
from asgiri.worker.transport.heartbeat import Heartbeat
from asgiri.worker.transport.quic import QuicEndpoint
from asgiri.worker.transport.services import WorkerServices
from asgiri.worker.transport.tcp import TcpEndpoint
from asgiri.worker.transport.tls import ServerTls, TlsError

logger = logging.getLogger("asgiri.worker")

WORKER_ID: Final = 1
ACCEPTS_PER_TURN: Final = 64
RECEIVE_SIZE: Final = 65535
ANCILLARY_SIZE: Final = socket.CMSG_SPACE(64)
GOAWAY_INTERVAL: Final = 1.0
LIFESPAN_PATIENCE: Final = 5.0
CANCEL_PATIENCE: Final = 1.0
CHECK_INTERVAL: Final = 0.02


class InProcessServer:
    """One application behind its listeners. `start`, then `stop`, on the same event loop."""

    def __init__(self, loaded: LoadedApplication, config: Config) -> None:
        """`config` names its certificates by now."""
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._loaded = loaded
        self._listeners = Listeners(
            backlog=config.listen.backlog, unix_access=UnixAccess(), quic=False
        )
        self._cleanup = contextlib.ExitStack()
        self._application: Application
        self._services: WorkerServices
        self._tcp: TcpEndpoint
        self._quic: QuicEndpoint | None = None
        self._lifespan: Lifespan

    @property
    def listeners(self) -> Listeners:
        """Where it listens, once started."""
        return self._listeners

    async def start(self) -> None:
        """Open the sockets, start the application, serve. Raises StartError; what is open then is
        closed again.
        """
        try:
            await self._start()
        except BaseException:
            self._cleanup.close()
            raise

    async def _start(self) -> None:
        config = self._config
        self._listeners = open_listeners(
            config.listen, quic=config.http.http3, unix_access=UnixAccess()
        )
        self._cleanup.callback(self._listeners.close)
        infos = [listener.info(tls=config.speaks_tls) for listener in self._listeners]
        call = with_https_policy(self._loaded.call, config.http, infos)
        self._application = Application(call, self._loop)
        scoreboard = Scoreboard(memoryview(bytearray(PAGE_SIZE)))
        services = self._services = make_services(
            self._application,
            config=config,
            scoreboard=scoreboard,
            loop=self._loop,
            listeners=infos,
            asgi_version=self._loaded.asgi_version,
        )
        self._cleanup.callback(services.deadlines.close)
        self._tcp = TcpEndpoint(services, infos, tls=self._load_tls())
        self._lifespan = Lifespan(
            self._application, services.scopes.lifespan_scope(), config.app.lifespan
        )
        heartbeat = Heartbeat(
            self._loop,
            scoreboard,
            services.requests,
            orphaned=_never,
            on_orphaned=_nothing,
            each_beat=_nothing,
        )
        self._cleanup.callback(heartbeat.close)
        try:
            await self._lifespan.startup()
        except LifespanError as error:
            details = f"\n{error.traceback}" if error.traceback else ""
            raise StartError(f"{error.summary}{details}") from None
        for listener in self._listeners.streams:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
        self._cleanup.callback(self._stop_accepting)
        if config.http.http3:
            self._start_quic()

    def _load_tls(self) -> ServerTls | None:
        if not self._config.speaks_tls:
            return None
        try:
            return ServerTls(self._config.tls, self._config.http)
        except TlsError as error:
            raise StartError(str(error)) from None

    def _start_quic(self) -> None:
        config = self._config
        secrets = load_quic_secrets(config.http3, config.tls)
        datagrams = list(self._listeners.datagrams)
        self._quic = QuicEndpoint(
            self._services,
            reader=_DatagramReader(datagrams, secrets, config),
            sockets={listener.index: listener.socket.dup() for listener in datagrams},
            secrets=secrets,
            worker_id=WORKER_ID,
            tls=config.tls,
        )
        self._cleanup.callback(self._quic.close)
        self._quic.start()

    def _accept(self, listener: Listener) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, _ = listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                logger.debug("accept: %s", error.strerror)
                return
            self._tcp.adopt(listener.index, connection.detach())

    def _stop_accepting(self) -> None:
        for listener in self._listeners.streams:
            if listener.fileno() >= 0:
                self._loop.remove_reader(listener.fileno())

    async def stop(self, patience: float) -> None:
        """Take nothing new, finish what is under way within so many seconds, close everything."""
        services = self._services
        services.draining = True
        self._stop_accepting()
        self._listeners.close_streams()
        until = services.now() + patience
        try:
            for session in list(services.sessions):
                session.begin_drain()
            await self._wait_empty(min(until, services.now() + GOAWAY_INTERVAL))
            for session in list(services.sessions):
                session.finish_drain()
            if not await self._wait_empty(until):
                await self._break_off()
            await self._lifespan.shutdown(LIFESPAN_PATIENCE)
        finally:
            self._cleanup.close()

    async def _break_off(self) -> None:
        services = self._services
        for session in list(services.sessions):
            session.cancel_exchanges()
        await self._wait_empty(services.now() + CANCEL_PATIENCE)
        for session in list(services.sessions):
            session.close()
        self._tcp.close_unopened()
        await self._wait_empty(services.now() + CANCEL_PATIENCE)

    async def _wait_empty(self, until: float) -> bool:
        services = self._services
        while services.sessions or not self._tcp.is_empty:
            if services.now() >= until:
                return False
            await asyncio.sleep(CHECK_INTERVAL)
        return True


def _never() -> bool:
    return False


def _nothing() -> None: ...


class _OnlyWorker:
    """The chooser of a server with one worker."""

    def choose_quic(self, now: float, client_ip: str) -> int:
        return WORKER_ID

    def assigned_quic(self, worker_id: int) -> None:
        pass

    def rendezvous(self, key: bytes) -> int:
        return WORKER_ID


class _NoLoad:
    """How busy it is. It would ask for a Retry when the endpoint refuses already."""

    half_open = 0
    ring_fill = 0.0


class _DatagramReader:
    """A `RecordReader` that reads the sockets itself, and answers what a master would answer."""

    corrupt = 0
    pending = False

    def __init__(self, listeners: list[Listener], secrets: QuicSecrets, config: Config) -> None:
        self._selector = selectors.DefaultSelector()
        for listener in listeners:
            self._selector.register(listener.socket, selectors.EVENT_READ, listener)
        self._peers = PeerTable()
        codec = ConnectionIdCodec(secrets.connection_id_key, server_id=secrets.server_id)
        self._steering: Steering[_OnlyWorker] = Steering(
            codec=codec,
            mint=ConnectionIdMint(codec, WORKER_ID, random=os.urandom),
            reset_tokens=ResetTokens(secrets.reset_key),
            retry_tokens=RetryTokens(secrets.token_key, random=os.urandom),
            chooser=_OnlyWorker(),
            random=os.urandom,
            retry=RetryMode(config.http3.quic_retry),
        )
        self._steering.add_worker(WORKER_ID, _OnlyWorker(), _NoLoad())
        self._steering.set_ready([WORKER_ID])

    def fileno(self) -> int:
        return self._selector.fileno()

    def take(self, limit: int) -> list[Record]:
        records: list[Record] = []
        for key, _ in self._selector.select(0):
            self._receive(key.data, records, limit)
        return records

    def close(self) -> None:
        self._selector.close()

    def _receive(self, listener: Listener, records: list[Record], limit: int) -> None:
        now = time.monotonic()
        while len(records) < limit:
            try:
                received = listener.socket.recvmsg(
                    RECEIVE_SIZE, ANCILLARY_SIZE, socket.MSG_DONTWAIT
                )
            except OSError:  # BlockingIOError, or what the network left on the socket
                return
            datagram, ancillary, _, address = received
            local = _local_address(ancillary) if listener.wildcard else None
            answer = self._steering.steer_untrusted(datagram, address, now)
            if isinstance(answer, _OnlyWorker):
                peer = self._peers.encode(address, listener.index, local)
                records.append(Record(datagram, 0, self._steering.flags, peer))
            elif isinstance(answer, bytes):
                sources = [] if local is None else [source_of(local)]
                with contextlib.suppress(OSError):
                    listener.socket.sendmsg([answer], sources, socket.MSG_DONTWAIT, address)


def _local_address(ancillary: list[tuple[int, int, bytes]]) -> LocalAddress | None:
    found = (parse_local_address(*message) for message in ancillary)
    return next((local for local in found if local is not None), None)

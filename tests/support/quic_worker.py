"""A worker's QUIC endpoint in the test's own process, behind a UDP socket and a record channel.

What the master does with a datagram is done here in the plainest way: it becomes a record of the
one worker there is. `ring` chooses the channel; the rest is the real thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from asgiri.config import AppConfig, Config, Http1Config, Http3Config, TlsConfig
from asgiri.ipc.counter import PipeCounter
from asgiri.ipc.records import LocalAddress, PeerTable, RecordWriter, record_header
from asgiri.ipc.ring import RingReader, RingWriter
from asgiri.ipc.scoreboard import Refusal, Scoreboard
from asgiri.ipc.stream import StreamReader, StreamWriter, record_stream_pair
from asgiri.ipc.tokens import QuicSecrets, RetryTokens
from asgiri.worker.asgi.application import Application
from asgiri.worker.runtime import make_services
from asgiri.worker.transport.quic import QuicEndpoint
from tests.support.certificates import certificates

WORKER_ID = 77
RING_SIZE = 1 << 22


class QuicWorker:
    """The endpoint, and a master of 20 lines."""

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        ring: bool = True,
        host: str = "127.0.0.1",
        wildcard: bool = False,
        sweep_period: float = 0.25,
        http1: Http1Config | None = None,
        **http3: Any,
    ) -> None:
        loop = asyncio.get_running_loop()
        files = certificates()
        tls = TlsConfig(certfile=(str(files.certfile),), keyfile=(str(files.keyfile),))
        config = Config(
            app=AppConfig(target="tests:app"),
            tls=tls,
            http1=http1 or Http1Config(),
            http3=Http3Config(**http3),
        )
        self.scoreboard = Scoreboard(memoryview(bytearray(4096)))
        application = Application(app, loop)
        self.services = make_services(
            application,
            config=config,
            scoreboard=self.scoreboard,
            loop=loop,
            sweep_period=sweep_period,
        )
        self.socket = _bound(host, wildcard=wildcard)
        self.host = host
        self.port = self.socket.getsockname()[1]
        self.secrets = QuicSecrets.derive(os.urandom(32))
        self.retry_tokens = RetryTokens(self.secrets.token_key, random=os.urandom)
        self.writer, reader = _ring() if ring else _stream()
        self.endpoint = QuicEndpoint(
            self.services,
            reader=reader,
            sockets={0: self.socket.dup()},
            secrets=self.secrets,
            worker_id=WORKER_ID,
            tls=tls,
        )
        self.answer: Callable[[bytes, tuple[Any, ...]], bytes | None] = _answer_nothing
        """What the master sends back itself: a Retry, say. The worker does not see that datagram.
        """
        self.datagrams = 0
        self._wildcard = wildcard
        self._peers = PeerTable()
        self._loop = loop
        loop.add_reader(self.socket.fileno(), self._receive)
        self.endpoint.start()

    def refusals(self, reason: Refusal) -> int:
        return self.scoreboard.refusals().get(reason.name.lower(), 0)

    async def close(self) -> None:
        self.endpoint.close()
        self.services.deadlines.close()
        self._loop.remove_reader(self.socket.fileno())
        self.socket.close()
        self.writer.close()

    def pass_on(
        self, datagram: bytes, address: tuple[Any, ...], local: LocalAddress | None = None
    ) -> None:
        """Give the worker a datagram as if it had come from this address."""
        peer = self._peers.encode(address, 0, local)
        self.writer.put(record_header(len(datagram), 0, 0, len(peer)), peer, datagram)
        self.writer.publish()

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(256):
                datagram, ancillary, _, address = self.socket.recvmsg(65536, 128)
                self.datagrams += 1
                if (answer := self.answer(datagram, address)) is not None:
                    self.socket.sendto(answer, address)
                    continue
                local = _local_address(ancillary) if self._wildcard else None
                peer = self._peers.encode(address, 0, local)
                self.writer.put(record_header(len(datagram), 0, 0, len(peer)), peer, datagram)
        self.writer.publish()


@contextlib.asynccontextmanager
async def quic_worker(app: Callable[..., Any], **options: Any) -> AsyncIterator[QuicWorker]:
    """A running endpoint that serves `app`; options are QuicWorker's and Http3Config's."""
    worker = QuicWorker(app, **options)
    try:
        yield worker
    finally:
        await worker.close()


def _ring() -> tuple[RecordWriter, RingReader]:
    memory = memoryview(bytearray(RING_SIZE))
    published, consumed = (PipeCounter.create() for _ in range(2))
    writer = RingWriter(
        memory, PipeCounter(writing=published.writing), PipeCounter(reading=consumed.reading)
    )
    reader = RingReader(
        memory, PipeCounter(reading=published.reading), PipeCounter(writing=consumed.writing)
    )
    return writer, reader


def _stream() -> tuple[RecordWriter, StreamReader]:
    ours, theirs = record_stream_pair()
    return StreamWriter(ours, RING_SIZE), StreamReader(theirs, RING_SIZE)


def _bound(host: str, *, wildcard: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    if wildcard:
        # Names that Python learns in 3.14 (IP_PKTINFO), or has (IPV6_RECVPKTINFO).
        level, option = (0, 8) if family == socket.AF_INET else (socket.IPPROTO_IPV6, 49)
        bound.setsockopt(level, option, 1)
    wildcards = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
    bound.bind((wildcards[family] if wildcard else host, 0))
    bound.setblocking(False)
    return bound


def _answer_nothing(_datagram: bytes, _address: tuple[Any, ...]) -> None:
    return None


def _local_address(ancillary: list[tuple[int, int, bytes]]) -> LocalAddress | None:
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == 8:
            return LocalAddress(data[8:12], int.from_bytes(data[:4], "little"))
        if level == socket.IPPROTO_IPV6 and kind == 50:
            return LocalAddress(data[:16], int.from_bytes(data[16:20], "little"))
    return None

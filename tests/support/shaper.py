"""A bad network between clients and a server: proxies that lose, repeat, reorder, delay and cut.

    async with UdpShaper(server.port, weather=STORM, seed=7) as network:
        connection = await Http3Connection.connect("127.0.0.1", network.port)

Chance comes from a seed, so that the same datagrams in the same order meet the same fate. The
weather may change at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
RECEIVE_SIZE = 65536
BATCH = 64
MOST_PATHS = 256
"""Clients that a UDP shaper remembers; who has been silent for longest is forgotten."""
BUFFER = 4 << 20
"""So that what is lost is what the weather says."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close() send a RST."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What happens on the way, in each direction."""

    loss: float = 0.0
    """Share of datagrams that never arrive; with 1, nothing does, and TCP stands still."""
    repeat: float = 0.0
    """Share of datagrams that arrive twice."""
    reorder: float = 0.0
    """Share of datagrams that those behind them overtake."""
    delay: float = 0.0
    """Seconds."""
    jitter: float = 0.0
    """Up to so many seconds more, by chance. Datagrams overtake each other by it, bytes do not."""
    piece: int = RECEIVE_SIZE
    """TCP passes on no more bytes than this at a time."""


CALM = Weather()
DRIZZLE = Weather(loss=0.01, repeat=0.005, reorder=0.01, jitter=0.001)
STORM = Weather(loss=0.1, repeat=0.05, reorder=0.1, delay=0.002, jitter=0.005)
CUT = Weather(loss=1.0)
OVERTAKEN_AFTER = 0.01
"""Seconds that a datagram is held back so that others overtake it."""


class UdpShaper:
    """Between clients and one UDP port. To the server, each client is a port of its own."""

    def __init__(self, target: int, *, weather: Weather = CALM, seed: int = 0) -> None:
        self.weather = weather
        self.passed = 0
        self.lost = 0
        self.repeated = 0
        self.reordered = 0
        self._target = target
        self._random = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._paths: dict[tuple[str, int], socket.socket] = {}
        self._front = self._open()
        self._front.bind((HOST, 0))
        self._loop.add_reader(self._front, self._from_clients)

    @property
    def port(self) -> int:
        port: int = self._front.getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        while self._paths:
            self._forget_oldest()
        self._loop.remove_reader(self._front)
        self._front.close()

    # Passing on

    def _from_clients(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(BATCH):
                datagram, client = self._front.recvfrom(RECEIVE_SIZE)
                path = self._paths.pop(client, None) or self._new_path(client)
                self._paths[client] = path  # the newest is the last
                self._carry(datagram, path.send)

    def _from_server(self, client: tuple[str, int], path: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            for _ in range(BATCH):
                datagram = path.recv(RECEIVE_SIZE)
                self._carry(datagram, partial(self._to_client, client))

    def _to_client(self, client: tuple[str, int], datagram: bytes) -> None:
        self._front.sendto(datagram, client)

    def _carry(self, datagram: bytes, send: Callable[[bytes], object]) -> None:
        weather, chance = self.weather, self._random.random
        if chance() < weather.loss:
            self.lost += 1
            return
        copies = 1
        if chance() < weather.repeat:
            self.repeated += 1
            copies = 2
        for _ in range(copies):
            wait = weather.delay + weather.jitter * chance()
            if chance() < weather.reorder:
                self.reordered += 1
                wait += OVERTAKEN_AFTER
            if wait:
                self._loop.call_later(wait, self._deliver, datagram, send)
            else:
                self._deliver(datagram, send)

    def _deliver(self, datagram: bytes, send: Callable[[bytes], object]) -> None:
        self.passed += 1
        with contextlib.suppress(OSError):  # nobody there any more: lost as well
            send(datagram)

    # Paths

    def _new_path(self, client: tuple[str, int]) -> socket.socket:
        if len(self._paths) >= MOST_PATHS:
            self._forget_oldest()
        path = self._open()
        path.connect((HOST, self._target))
        self._loop.add_reader(path, self._from_server, client, path)
        return path

    def _forget_oldest(self) -> None:
        path = self._paths.pop(next(iter(self._paths)))
        self._loop.remove_reader(path)
        path.close()

    @staticmethod
    def _open() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.setblocking(False)
        for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            opened.setsockopt(socket.SOL_SOCKET, buffer, BUFFER)
        return opened


class TcpShaper:
    """Between clients and one TCP port. The kernels repeat what a network loses, so what is left of
    bad weather are delays, small pieces, standstills and `cut`."""

    def __init__(self, target: int, *, weather: Weather = CALM, seed: int = 0) -> None:
        self.cuts = 0
        self._target = target
        self._weather = weather
        self._changed = asyncio.Event()
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def weather(self) -> Weather:
        return self._weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self._weather = weather
        self._changed.set()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, HOST, 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection, on both sides."""
        for writer in list(self._writers):
            self.cuts += 1
            self._reset(writer)

    # Connections

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward = await asyncio.open_connection(HOST, self._target)
        except OSError:
            self._reset(writer)
            return
        pumps = [(reader, onward[1]), (onward[0], writer)]
        tasks = [asyncio.create_task(self._pump(*pump)) for pump in pumps]
        self._tasks.update(tasks)
        self._writers |= {writer, onward[1]}
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._tasks.difference_update(tasks)
            for each in (writer, onward[1]):
                self._writers.discard(each)
                each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on until they end; a reset of one side becomes one of the other."""
        try:
            while data := await reader.read(self._weather.piece):
                await self._wait()
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            self._reset(writer)

    async def _wait(self) -> None:
        if wait := self._weather.delay + self._weather.jitter * self._random.random():
            await asyncio.sleep(wait)
        while self._weather.loss == 1:
            self._changed.clear()
            await self._changed.wait()

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        connected = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()

"""The same numbers for a StatsD server, under gunicorn's names where it has them.

gunicorn sends three datagrams with each request; here the differences of a second are sent, by the
admin worker, whatever the number of requests. Durations come from the histogram: each bucket
that got some is one timer at its middle, with a sample rate that says how many there were.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from asgiri.admin.watch import Watch
from asgiri.config import BindAddress, parse_bind

logger = logging.getLogger("asgiri.admin")

INTERVAL: Final = 1.0
"""Seconds between two reports. Servers add up over ten as a rule."""
RESOLVE_INTERVAL: Final = 60.0
"""Seconds after which a name is looked up again: the server may have moved."""
COMPLAINT_INTERVAL: Final = 60.0
"""Seconds between two lines in the log about a server that cannot be reached."""
MAX_DATAGRAM: Final = 1432
"""Bytes, so that none is cut in two on an Ethernet."""

COUNTERS: Final[Mapping[str, tuple[str, ...]]] = {
    "asgiri.application_errors": ("totals", "app_errors"),
    "asgiri.connections.accepted": ("connections", "accepted"),
    "asgiri.websockets.opened": ("totals", "websockets_total"),
}
SUMS: Final[Mapping[str, tuple[str, ...]]] = {
    "gunicorn.requests": ("totals", "requests"),
    "asgiri.datagrams.dropped": ("totals", "drops"),
    "asgiri.refusals": ("totals", "refusals"),
    "asgiri.worker_restarts": ("ended",),
}
"""Counters that are a sum over a mapping."""
GAUGES: Final[Mapping[str, tuple[str, ...]]] = {
    "gunicorn.workers": ("counts", "ready"),
    "asgiri.workers.blocked": ("counts", "blocked"),
    "asgiri.workers.draining": ("counts", "draining"),
    "asgiri.connections.waiting": ("connections", "waiting"),
}

Status = Mapping[str, Any]


def report(before: Status, now: Status, prefix: str) -> Iterator[str]:
    """Yield what has happened between two statuses, one metric a line."""
    for name, path in COUNTERS.items():
        yield from _count(prefix + name, _at(now, path) - _at(before, path))
    for name, path in SUMS.items():
        difference = sum(_at(now, path).values()) - sum(_at(before, path).values())
        yield from _count(prefix + name, difference)
    for status, count in now["totals"]["responses"].items():
        difference = count - before["totals"]["responses"][status]
        yield from _count(f"{prefix}gunicorn.request.status.{status}", difference)
    yield from _timers(before, now, prefix)
    for name, path in GAUGES.items():
        yield f"{prefix}{name}:{_at(now, path)}|g"
    workers = now["workers"]
    active = sum(worker["requests_active"] for worker in workers)
    connections = sum(sum(worker["connections"].values()) for worker in workers)
    lag = max((worker["lag"] for worker in workers), default=0.0)
    yield f"{prefix}asgiri.requests.active:{active}|g"
    yield f"{prefix}asgiri.connections.open:{connections}|g"
    yield f"{prefix}asgiri.loop_lag_ms:{lag * 1000:.1f}|g"


def _count(name: str, difference: int) -> Iterator[str]:
    if difference > 0:
        yield f"{name}:{difference}|c"


def _timers(before: Status, now: Status, prefix: str) -> Iterator[str]:
    durations = now["totals"]["durations"]
    edges = pairwise([0.0, *durations["bounds"], durations["bounds"][-1]])
    earlier = before["totals"]["durations"]["counts"]
    for (low, high), old, new in zip(edges, earlier, durations["counts"], strict=True):
        if new > old:
            middle = (low + high) / 2 * 1000
            rate = f"|@{1 / (new - old):.9g}" if new - old > 1 else ""
            yield f"{prefix}gunicorn.request.duration:{middle:g}|ms{rate}"


def _at(status: Status, path: tuple[str, ...]) -> Any:
    value: Any = status
    for name in path:
        value = value[name]
    return value


def datagrams(lines: Iterator[str]) -> Iterator[bytes]:
    """Put as many lines together as one datagram holds."""
    waiting = b""
    for line in lines:
        encoded = line.encode()
        if waiting and len(waiting) + 1 + len(encoded) > MAX_DATAGRAM:
            yield waiting
            waiting = b""
        waiting = waiting + b"\n" + encoded if waiting else encoded
    if waiting:
        yield waiting


class StatsdSender:
    """Sends, and waits for nothing and nobody: what cannot be sent is lost, as UDP is."""

    def __init__(self, host: str, prefix: str) -> None:
        self._address = parse_bind(host)
        self._prefix = f"{prefix.rstrip('.')}." if prefix else ""
        self._socket: socket.socket | None = None
        self._resolve_at = 0.0
        self._quiet_until = 0.0

    async def run(self, watch: Watch) -> None:
        """Send until cancelled."""
        before: Status = {}
        try:
            while True:
                now = await watch.status()
                if before and now:
                    await self._send(report(before, now, self._prefix))
                before = now
                await asyncio.sleep(INTERVAL)
        finally:
            self._close()

    async def _send(self, lines: Iterator[str]) -> None:
        try:
            connected = await self._connected()
            for datagram in datagrams(lines):
                connected.send(datagram)
        except OSError as error:
            self._close()
            now = time.monotonic()
            if now >= self._quiet_until:
                self._quiet_until = now + COMPLAINT_INTERVAL
                logger.warning("StatsD server %s: %s", self._address, error.strerror or error)

    async def _connected(self) -> socket.socket:
        if self._socket is None or time.monotonic() >= self._resolve_at:
            self._close()
            family, address = await _resolve(self._address)
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.connect(address)
            self._resolve_at = time.monotonic() + RESOLVE_INTERVAL
        return self._socket

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


async def _resolve(where: BindAddress) -> tuple[int, Any]:
    if where.kind == "unix":
        return socket.AF_UNIX, where.path
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(where.host, where.port, type=socket.SOCK_DGRAM)
    return found[0][0], found[0][4]

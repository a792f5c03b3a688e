"""Floods, one after the other: `python -m tests.soak.floods --seconds 60`.

For each, a fresh server, an attack at a bounded rate, and clients that want nothing but answers.
What must hold: every process stays within 64 MiB of its memory, the other clients' p99 is below
100 ms and none of them fails, and a counter names the attack. Exits with 1 when something does not.

Timeouts of the server are shorter than by default, so that those which end an attack do so in any
run of 15 s or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.soak.attacks import ATTACKS
from tests.support.admin import Admin
from tests.support.client import request
from tests.support.http1_client import Http1Connection
from tests.support.load import (
    Client,
    Http2,
    Http3,
    KeepAlive,
    SecureKeepAlive,
    assert_nothing_failed,
    load,
    ports,
)
from tests.support.memory_use import peak_memory, reset_peak_memory, resident_memory
from tests.support.metrics import Metrics
from tests.support.server import PROJECT, Server, serve

MEMORY = 64 << 20
P99 = 0.1
CALM = 3.0
"""Seconds of the same clients without an attack, to compare with."""
BUSY_MACHINE = 3
"""A p99 above the limit is the machine's if it was within this factor of it without an attack."""
TIMEOUTS: dict[str, Any] = {
    "header_timeout": 5,
    "body_timeout": 5,
    "tls_handshake_timeout": 5,
    "graceful_timeout": 5,
}

REFUSED = "asgiri_refusals_total"
DROPPED = "asgiri_datagrams_dropped_total"
COUNTERS: dict[str, Sequence[tuple[str, str]]] = {
    "connections": [(REFUSED, "http1_head_timeout"), (REFUSED, "tls_handshake_timeout")],
    "connections that come and go": [
        ("asgiri_connections_accepted_total", ""),
        ("asgiri_connections_aborted_total", ""),
    ],
    "HTTP/1.1 slow heads": [(REFUSED, "http1_head_timeout")],
    "HTTP/1.1 slow bodies": [(REFUSED, "body_timeout")],
    "HTTP/2 rapid reset": [(REFUSED, "http2_reset_flood")],
    "HTTP/2 MadeYouReset": [(REFUSED, "http2_reset_flood")],
    "HTTP/2 CONTINUATION": [(REFUSED, "http2_continuation_flood")],
    "HTTP/2 HPACK bomb": [(REFUSED, "http2_headers_too_large")],
    "HTTP/2 SETTINGS": [(REFUSED, "http2_settings_flood")],
    "HTTP/2 PING": [(REFUSED, "http2_ping_flood")],
    "HTTP/2 empty DATA": [(REFUSED, "http2_empty_frame_flood")],
    "HTTP/2 PRIORITY": [(REFUSED, "http2_priority_flood")],
    "HTTP/2 zero window": [(REFUSED, "http2_stalled"), (REFUSED, "write_timeout")],
    "QUIC Initials": [("asgiri_quic_retries_sent_total", "")],
    "QUIC forged connection IDs": [(DROPPED, "unknown_connection_id")],
    "QUIC PATH_CHALLENGE": [(REFUSED, "quic_frame_flood")],
    "QUIC RETIRE_CONNECTION_ID": [(REFUSED, "quic_frame_flood")],
    "HTTP/3 QPACK bomb": [(REFUSED, "http3_headers_too_large")],
    "HTTP/3 rapid reset": [(REFUSED, "http3_reset_flood")],
    "WebSocket pings": [(REFUSED, "websocket_ping_flood")],
    "WebSocket fragments": [(REFUSED, "websocket_fragment_flood")],
    "WebSocket inflation": [(REFUSED, "websocket_too_big")],
}


class Newcomers(Client):
    """A new connection for each request."""

    async def converse(self) -> None:
        connection = await Http1Connection.connect("127.0.0.1", self.port)
        try:
            await self.measured(self._ask(connection))
        finally:
            await connection.close()

    async def _ask(self, connection: Http1Connection) -> bytes:
        response = await request(connection, "GET", "/pid", [("connection", "close")])
        assert response.status == 200, response
        return response.body


def newcomers(*, port: int, server: Server, **options: Any) -> Newcomers:
    return Newcomers(port=ports(server)[0], server=server, **options)


OTHERS = (KeepAlive, SecureKeepAlive, Http2, Http3, newcomers)


@dataclass(frozen=True, slots=True)
class Outcome:
    name: str
    sent: int
    connections: int
    counted: dict[str, int]
    grown: int
    """Bytes that the process which grew most has grown by at its peak."""
    p99: float
    calm: float
    answers: int
    failures: Sequence[str]

    @property
    def complaints(self) -> list[str]:
        complaints = list(self.failures)
        if self.grown > MEMORY:
            complaints.append(f"{self.grown >> 20} MiB more memory")
        if self.p99 > max(P99, BUSY_MACHINE * self.calm):
            complaints.append(f"p99 of others {self.p99 * 1000:.0f} ms")
        if not any(self.counted.values()):
            complaints.append("no counter names it")
        return [f"{self.name}: {complaint}" for complaint in complaints]

    def line(self) -> str:
        counted = ", ".join(f"{name} {count}" for name, count in self.counted.items())
        return (
            f"| {self.name} | {self.sent} | {self.connections} | {counted}"
            f" | {self.grown / (1 << 20):.1f} | {self.calm * 1000:.1f} | {self.p99 * 1000:.1f} |"
        )


HEAD = (
    "| flood | portions sent | connections | counted | MiB more"
    " | others' p99 before, ms | during, ms |\n|---|---|---|---|---|---|---|"
)


async def flood(name: str, seconds: float, *, calm: float = CALM) -> Outcome:
    async with serve(
        workers=2,
        tls=True,
        http3=True,
        insecure_bind="127.0.0.1:0",
        admin="127.0.0.1:0",
        **TIMEOUTS,
    ) as server:
        admin = Admin(server)
        await admin.wait_ready()
        async with load(server, OTHERS, pause=0.01) as others:
            await _measured_for(others, calm / 2)  # warm up
            before = await _measured_for(others, calm)
            start = {pid: resident_memory(pid) for pid in server.live_pids()}
            for pid in start:
                reset_peak_memory(pid)
            for client in others:
                client.latencies = []
            done = await _attack(server, name, seconds)
            during = _taken(others)
            grown = max(peak_memory(pid) - memory for pid, memory in start.items())
            metrics = await admin.metrics()
        failures = [failure for client in others for failure in client.failures]
        if not failures:
            assert_nothing_failed(others)
    return Outcome(
        name=name,
        sent=done["sent"],
        connections=done["connections"],
        counted=_counted(metrics, name),
        grown=grown,
        p99=percentile(during),
        calm=percentile(before),
        answers=len(during),
        failures=failures,
    )


async def _attack(server: Server, name: str, seconds: float) -> dict[str, int]:
    plain, secure = ports(server)
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.soak.attacks"),
        *(name, str(plain), str(secure), str(seconds)),
        cwd=PROJECT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await asyncio.wait_for(attacker.communicate(), seconds + 60)
    except BaseException:
        attacker.kill()
        raise
    assert attacker.returncode == 0, f"{name}: the attacker exited with {attacker.returncode}"
    done: dict[str, int] = json.loads(output)
    return done


async def _measured_for(others: Sequence[Client], seconds: float) -> list[float]:
    for client in others:
        client.latencies = []
    await asyncio.sleep(seconds)
    return _taken(others)


def _taken(others: Sequence[Client]) -> list[float]:
    return [latency for client in others for latency in client.latencies or ()]


def percentile(latencies: Sequence[float], share: float = 0.99) -> float:
    ordered = sorted(latencies)
    return ordered[int(len(ordered) * share)] if ordered else float("inf")


def _counted(metrics: Metrics, name: str) -> dict[str, int]:
    counted = {}
    for metric, reason in COUNTERS[name]:
        if reason:
            counted[reason] = int(metrics.by(metric, "reason").get(reason, 0))
        else:
            counted[metric.removeprefix("asgiri_")] = int(metrics.sum(metric))
    return counted


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.floods", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each flood")
    parser.add_argument("--only", metavar="NAME", action="append", choices=ATTACKS)
    options = parser.parse_args()
    complaints = []
    print(HEAD, flush=True)
    for name in options.only or ATTACKS:
        outcome = asyncio.run(flood(name, options.seconds))
        print(outcome.line(), flush=True)
        complaints += outcome.complaints
    print("\n".join(f"FAILED {complaint}" for complaint in complaints))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

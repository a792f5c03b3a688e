"""One soak: cycles of load with faults, each with a rest at its end in which everything is counted.

Nothing is judged by how long it takes, only by what fails, what is left and what has grown, so that
a busy machine makes a soak slower but not another.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import dataclass, field

from tests.soak import census
from tests.soak.crowd import PATIENCE, PLAIN, QUIC, TCP, Blame, Crowd
from tests.soak.faults import ADMIN_READY, SLOW, Faults
from tests.support.admin import Admin
from tests.support.load import ports, summary
from tests.support.server import Server, serve
from tests.support.shaper import CALM, DRIZZLE, TcpShaper, UdpShaper

APP = "tests.soak.app:app"
WARM_UP = 2
"""Cycles before the first look that others are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    seconds: float = 600.0
    cycle: float = 30.0
    """Seconds of load between two rests."""
    answers: int = 3
    """What everybody gets between two faults."""
    worker_stopped: float = 1.5
    """Seconds; less than what has a worker replaced or a client give up."""
    workers: int = 2
    seed: int = 1


@dataclass
class Report:
    plan: Plan
    seconds: float = 0.0
    looks: list[census.Census] = field(default_factory=list)
    served: int = 0
    clients: str = ""
    excused: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    injected: dict[str, int] = field(default_factory=dict)
    datagrams: str = ""

    @property
    def complaints(self) -> list[str]:
        compared = self.looks[WARM_UP:] if len(self.looks) > WARM_UP + 1 else []
        return self.failures + (census.growth(compared) if compared else [])

    def lines(self) -> list[str]:
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.injected.items()))
        return [
            (
                f"{self.seconds:.0f} s, {len(self.looks)} cycles, {self.plan.workers} workers,"
                f" seed {self.plan.seed}: {self.served} requests and messages served"
            ),
            *self.clients.split("; "),
            f"faults: {faults}; {self.datagrams}",
            (
                f"failed because of them: {len(self.excused)}; for another reason:"
                f" {len(self.failures)}"
            ),
            *census.table(self.looks),
            *(f"FAILED {complaint}" for complaint in self.complaints),
        ]


async def soak(plan: Plan, *, progress: bool = False) -> Report:
    begin = time.monotonic()
    report = Report(plan)
    async with serve(
        APP,
        workers=plan.workers,
        tls=True,
        http3=True,
        insecure_bind="127.0.0.1:0",
        admin="127.0.0.1:0",
        graceful_timeout=PATIENCE,
        timeout=PATIENCE,
    ) as server:
        server.log.patience = PATIENCE
        plain, secure = ports(server)
        async with (
            UdpShaper(secure, weather=DRIZZLE, seed=plan.seed) as udp,
            TcpShaper(secure, weather=SLOW, seed=plan.seed) as tcp,
        ):
            where = {kind: [plain] for kind in PLAIN}
            where |= {kind: [secure, tcp.port] for kind in TCP}
            where |= {kind: [secure, udp.port] for kind in QUIC}
            blame = Blame()
            crowd = Crowd.of(server, blame, where)
            admin_pid = int((await server.wait_line(ADMIN_READY))[1])
            chance = random.Random(plan.seed)
            faults = Faults(server, crowd, blame, udp, tcp, chance, admin_pid, plan.worker_stopped)
            while not report.looks or time.monotonic() - begin < plan.seconds:
                await _cycle(crowd, faults, plan)
                report.looks.append(await _rest(server, crowd, faults))
                if progress:
                    print(census.table(report.looks)[-1], file=sys.stderr, flush=True)
            report.served = crowd.served
            report.clients = summary(crowd.clients)
            report.excused = [text for client in crowd.clients for text in client.excused]
            report.failures = crowd.failures
            report.injected = dict(faults.injected)
            report.datagrams = (
                f"{udp.lost} datagrams lost, {udp.repeated} repeated, {udp.reordered} overtaken,"
                f" {udp.passed} passed; {tcp.cuts // 2} connections cut"
            )
    report.seconds = time.monotonic() - begin
    return report


async def _cycle(crowd: Crowd, faults: Faults, plan: Plan) -> None:
    """Every fault at least once, with progress of everybody after each."""
    begin = time.monotonic()
    crowd.begin()
    await crowd.wait_progress(plan.answers)
    while True:
        for fault in faults.round():
            await fault()
            await crowd.wait_progress(plan.answers)
        if time.monotonic() - begin >= plan.cycle:
            return


async def _rest(server: Server, crowd: Crowd, faults: Faults) -> census.Census:
    """Send everybody home in good weather, and count."""
    faults.udp.weather = faults.tcp.weather = CALM
    await crowd.end()
    await census.wait_rest(server, Admin(server), len(server.workers))
    look = await census.take(server, faults.admin_pid, server.worker_pids)
    faults.udp.weather, faults.tcp.weather = DRIZZLE, SLOW
    return look


def run(plan: Plan) -> Report:
    return asyncio.run(soak(plan, progress=True))

"""What is done to the server and to the network while the crowd asks."""

from __future__ import annotations

import asyncio
import collections
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.soak.crowd import Blame, Crowd
from tests.support.server import Server
from tests.support.shaper import DRIZZLE, STORM, TcpShaper, UdpShaper, Weather

ADMIN_READY = r"admin pid=(\d+) gen=\d+: ready"
SLOW = Weather(delay=0.001, jitter=0.005, piece=16384)
MASTER_STOPPED = 0.3
"""Seconds."""


@dataclass
class Faults:
    """Each method does one thing and returns when it has been got over."""

    server: Server
    crowd: Crowd
    blame: Blame
    udp: UdpShaper
    tcp: TcpShaper
    chance: random.Random
    admin_pid: int
    worker_stopped: float
    injected: collections.Counter[str] = field(default_factory=collections.Counter)
    generation: int = 1

    def round(self) -> list[Callable[[], Awaitable[None]]]:
        """All of them, in an order by chance."""
        faults: list[Callable[[], Awaitable[None]]] = [
            self.reload,
            self.kill_worker,
            self.stop_worker,
            self.stop_master,
            self.kill_admin,
            self.cut,
            self.storm,
        ]
        self.chance.shuffle(faults)
        return faults

    async def reload(self) -> None:
        self.injected["reloads"] += 1
        self.generation += 1
        start = self.server.log.end
        self.server.send_signal(signal.SIGHUP)
        await self.server.wait_line(f"reloaded: generation {self.generation} serves", start)

    async def kill_worker(self) -> None:
        self.injected["workers killed"] += 1
        slot = self.chance.choice(list(self.server.workers))
        self.blame.killed(self.server.workers[slot])
        pid = self.server.kill_worker(slot)
        await self.server.wait_replaced(slot, pid)

    async def stop_worker(self) -> None:
        self.injected["workers stopped"] += 1
        slot = self.chance.choice(list(self.server.workers))
        await self._stop(self.server.workers[slot], self.worker_stopped)

    async def stop_master(self) -> None:
        self.injected["masters stopped"] += 1
        await self._stop(self.server.pid, MASTER_STOPPED)

    async def _stop(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    async def kill_admin(self) -> None:
        self.injected["admins killed"] += 1
        start = self.server.log.end
        os.kill(self.admin_pid, signal.SIGKILL)
        self.admin_pid = int((await self.server.wait_line(ADMIN_READY, start))[1])

    async def cut(self) -> None:
        self.injected["network cuts"] += 1
        self.blame.cut(self.tcp.port)
        self.tcp.cut()

    async def storm(self) -> None:
        self.injected["storms"] += 1
        self.udp.weather, self.tcp.weather = STORM, SLOW
        lost = self.udp.lost
        while self.udp.lost < lost + 20:
            await asyncio.sleep(0.05)
        await self.crowd.wait_progress(1)
        self.udp.weather = DRIZZLE

"""How long do clients wait while another client keeps one worker busy?

One client asks for a page whose handler computes for 200 ms, again and again. Meanwhile others ask
for a trivial page: on keep-alive connections, one request at a time with a pause between two, and
on new connections. Prints how long they waited, and how many pages the busy client got. A server
whose workers are not all busy has no reason to let anybody wait.

HTTP/1.1 in cleartext on all servers found; `--version tls|http2|http3` measures asgiri alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from lib.clients import CLIENTS
from lib.report import percentiles
from lib.servers import Contender, Place, certificate, free_port, running

APP = "busy_app:app"
PAUSE = 0.02
"""Seconds between two requests of a keep-alive connection: 16 of them are 800 requests a second at
most."""
NEW_PAUSE = 0.01


@dataclass(slots=True)
class Result:
    """Seconds that requests took."""

    keep_alive: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    busy: int = 0
    failed: int = 0


def contenders(options: argparse.Namespace) -> list[Contender]:
    workers = str(options.workers)
    ours = [APP, "--bind", "{address}", "--workers", workers, "--no-access-log", *options.asgiri]
    if options.version != "http1":
        ours += ["--certfile", "{certfile}", "--keyfile", "{keyfile}"]
    if options.version == "http3":
        ours.append("--http3")
    asgiri = Contender("asgiri", "", ("-m", "asgiri", *ours))
    if options.version != "http1":
        return [asgiri]
    uvicorn = (APP, "--port", "{port}", "--workers", workers, "--no-access-log")
    granian = ("--interface", "asgi", "--port", "{port}", "--workers", workers, APP)
    return [
        asgiri,
        Contender("uvicorn", "uvicorn", uvicorn),
        Contender("granian", "granian", granian),
        Contender("gunicorn", "gunicorn", ("-k", "asgi", "-b", "{address}", "-w", workers, APP)),
        Contender("hypercorn", "hypercorn", ("-b", "{address}", "-w", workers, APP)),
    ]


class Load:
    """The clients of one measurement. A client that loses its connection opens another."""

    def __init__(self, url: str, options: argparse.Namespace) -> None:
        self._url = url
        self._options = options
        self._connect = CLIENTS[options.version].connect
        self.result = Result()
        self._measuring = False

    async def run(self) -> Result:
        options = self._options
        tasks = [asyncio.create_task(self._busy()) for _ in range(options.busy)]
        tasks += [asyncio.create_task(self._keep_alive(n)) for n in range(options.connections)]
        tasks.append(asyncio.create_task(self._new()))
        await asyncio.sleep(options.warm)
        self._measuring = True
        await asyncio.sleep(options.seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return self.result

    async def _busy(self) -> None:
        async for client in self._connections():
            while True:
                await client.get(f"/busy?{self._options.milliseconds}")
                self.result.busy += self._measuring

    async def _keep_alive(self, number: int) -> None:
        await asyncio.sleep(PAUSE * number / self._options.connections)
        async for client in self._connections():
            while True:
                begin = time.perf_counter()
                await client.get("/")
                if self._measuring:
                    self.result.keep_alive.append(time.perf_counter() - begin)
                await asyncio.sleep(PAUSE)

    async def _new(self) -> None:
        while True:
            begin = time.perf_counter()
            with self._counting_failures():
                client = await self._connect(self._url)
                await client.get("/")
                if self._measuring:
                    self.result.new.append(time.perf_counter() - begin)
                await client.close()
            await asyncio.sleep(NEW_PAUSE)

    async def _connections(self) -> AsyncIterator[object]:
        while True:
            with self._counting_failures():
                yield await self._connect(self._url)
            await asyncio.sleep(0)

    @contextlib.contextmanager
    def _counting_failures(self):
        try:
            yield
        except (OSError, EOFError, ConnectionError):
            self.result.failed += self._measuring


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="directory of a venv with other servers")
    parser.add_argument("--only", default="", help="measure servers whose name contains this")
    parser.add_argument("--version", choices=CLIENTS, default="http1")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--busy", type=int, default=1, help="clients that keep a worker busy")
    parser.add_argument("--milliseconds", type=int, default=200, help="what their handler computes")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--warm", type=float, default=1)
    parser.add_argument(
        "--asgiri", nargs=argparse.REMAINDER, default=[], help="further options of asgiri"
    )
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    busy = f"{options.busy} busy client{'s' if options.busy > 1 else ''}"
    print(f"{options.version}, {options.workers} workers, {busy} of {options.milliseconds} ms")
    print("waiting times in ms; busy: pages per second of the busy clients\n")
    columns = f"{'p50':>7} {'p90':>7} {'p99':>7} {'max':>7} {'n':>7}"
    print(f"{'':<10} {'keep-alive':>39}   {'new connections':>39}   {'busy':>5} failed")
    print(f"{'':<10} {columns}   {columns}")
    with certificate() as (certfile, keyfile):
        for contender in contenders(options):
            if options.only not in contender.name:
                continue
            place = Place(free_port(), certfile, keyfile)
            command = contender.command(place, options.peers)
            if command is None:
                print(f"{contender.name:<10} missing on this machine")
                continue
            scheme = "http" if options.version == "http1" else "https"
            with running(command, place.port, None):
                result = asyncio.run(Load(f"{scheme}://{place.address}", options).run())
            waits = f"{percentiles(result.keep_alive)}   {percentiles(result.new)}"
            rate = result.busy / options.seconds
            print(f"{contender.name:<10} {waits}   {rate:>5.1f} {result.failed:>6}", flush=True)


if __name__ == "__main__":
    main()

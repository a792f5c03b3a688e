"""How much more do two workers serve than one, how evenly, and what does moving requests cost?

Keep-alive connections in cleartext, one request at a time on each, that compute for some
milliseconds (--milliseconds 0: a trivial page, which shows what a request costs). Prints requests
per second, their ratio to one worker of asgiri, the processor time of all processes of the server
per request without the computing, and the requests of each worker.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from pathlib import Path

from lib.clients import Http1Client
from lib.cpu import tree_nanoseconds
from lib.servers import Contender, Place, free_port, running

APP = "busy_app:app"


def contenders(workers: int) -> list[Contender]:
    ours = ("-m", "asgiri", APP, "--bind", "{address}", "--no-access-log")
    count = ("--workers", str(workers))
    uvicorn = (APP, "--port", "{port}", *count, "--no-access-log")
    granian = ("--interface", "asgi", "--port", "{port}", *count, APP)
    gunicorn = ("-k", "asgi", "-b", "{address}", "-w", str(workers), APP)
    return [
        Contender("asgiri, 1 worker", "", (*ours, "--workers", "1")),
        Contender("asgiri, auto", "", (*ours, *count)),
        Contender("asgiri, connection", "", (*ours, *count, "--balance", "connection")),
        Contender("asgiri, request", "", (*ours, *count, "--balance", "request")),
        Contender("uvicorn", "uvicorn", uvicorn),
        Contender("granian", "granian", granian),
        Contender("gunicorn", "gunicorn", gunicorn),
        Contender("hypercorn", "hypercorn", ("-b", "{address}", "-w", str(workers), APP)),
    ]


class Load:
    """What the clients count while it is measured."""

    def __init__(self, url: str, options: argparse.Namespace) -> None:
        self._url = url
        self._connections: int = options.connections
        milliseconds: float = options.milliseconds
        self._path = f"/busy?{milliseconds:g}" if milliseconds else "/"
        self.by_worker: Counter[bytes] = Counter()

    async def run(self, server: int, warm: float, seconds: float) -> int:
        """Return the nanoseconds that the server's processes ran."""
        clients = [await Http1Client.connect(self._url) for _ in range(self._connections)]
        tasks = [asyncio.create_task(self._ask(client)) for client in clients]
        await asyncio.sleep(warm)
        before = tree_nanoseconds(server)
        self.by_worker.clear()
        await asyncio.sleep(seconds)
        spent = tree_nanoseconds(server) - before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return spent

    async def _ask(self, client: Http1Client) -> None:
        while True:
            self.by_worker[await client.get(self._path)] += 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="directory of a venv with other servers")
    parser.add_argument("--only", default="", help="measure servers whose name contains this")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--milliseconds", type=float, default=5, help="what a handler computes")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--warm", type=float, default=2)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    print(f"{options.connections} connections, {options.milliseconds:g} ms of computing each\n")
    print(f"{'':<20} {'per s':>8} {'ratio':>6} {'us each':>8}  requests of each worker")
    alone = 0.0
    for contender in contenders(options.workers):
        if options.only not in contender.name:
            continue
        place = Place(free_port(), "", "")
        command = contender.command(place, options.peers)
        if command is None:
            print(f"{contender.name:<20} missing on this machine")
            continue
        load = Load(f"http://{place.address}", options)
        with running(command, place.port, None) as process:
            spent = asyncio.run(load.run(process.pid, options.warm, options.seconds))
        total = load.by_worker.total()
        rate = total / options.seconds
        alone = alone or rate
        cost = spent / total / 1000 - options.milliseconds * 1000
        counts = " ".join(map(str, sorted(load.by_worker.values())))
        print(f"{contender.name:<20} {rate:>8.0f} {rate / alone:>6.2f} {cost:>8.0f}  {counts}")


if __name__ == "__main__":
    main()

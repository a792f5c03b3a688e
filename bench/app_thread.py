"""How late does a server answer for itself while its application computes?

One worker, and a client that keeps it busy with handlers of some milliseconds. Meanwhile somebody
pings a WebSocket and a QUIC connection, which is no business of the application's: how long those
wait is how late keep-alives, acknowledgements and loss timers are. Once as usual, once with
--app-thread. What the option costs per request is in `http1_hello.py --only asgiri`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass, field

from lib.clients import Http1Client, Http3Client, PingedWebSocket
from lib.report import percentiles
from lib.servers import Contender, Place, certificate, free_port, running

APP = "busy_app:app"
PAUSE = 0.02
"""Seconds between two pings."""


@dataclass(slots=True)
class Result:
    websocket: list[float] = field(default_factory=list)
    quic: list[float] = field(default_factory=list)
    busy: int = 0


async def measure(url: str, options: argparse.Namespace) -> Result:
    result = Result()
    busy = await Http1Client.connect(url)
    websocket, quic = await PingedWebSocket.connect(url), await Http3Client.connect(url)
    end = time.perf_counter() + options.seconds

    async def compute() -> None:
        while time.perf_counter() < end:
            await busy.get(f"/busy?{options.milliseconds}")
            result.busy += 1

    async def ping(client: PingedWebSocket | Http3Client, waits: list[float]) -> None:
        while (begin := time.perf_counter()) < end:
            await client.ping()
            waits.append(time.perf_counter() - begin)
            await asyncio.sleep(PAUSE)

    await asyncio.gather(compute(), ping(websocket, result.websocket), ping(quic, result.quic))
    return result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--milliseconds", type=int, default=80, help="what a handler computes")
    parser.add_argument("--seconds", type=float, default=8)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    print(f"1 worker, 1 busy client of {options.milliseconds} ms; waiting times in ms")
    print("busy: pages per second of the busy client\n")
    columns = f"{'p50':>7} {'p90':>7} {'p99':>7} {'max':>7} {'n':>7}"
    print(f"{'':<12} {'WebSocket pings':>39}   {'QUIC pings':>39}    busy")
    print(f"{'':<12} {columns}   {columns}")
    with certificate() as (certfile, keyfile):
        for name, more in (("usual", ()), ("app thread", ("--app-thread",))):
            place = Place(free_port(), certfile, keyfile)
            ours = (*("-m", "asgiri", APP, "--bind", "{address}", "--no-access-log"), *more)
            tls = ("--http3", "--certfile", "{certfile}", "--keyfile", "{keyfile}")
            command = Contender(name, "", (*ours, *tls)).command(place, None)
            assert command is not None
            with running(command, place.port, None):
                result = asyncio.run(measure(f"https://{place.address}", options))
            waits = f"{percentiles(result.websocket)}   {percentiles(result.quic)}"
            print(f"{name:<12} {waits}   {result.busy / options.seconds:>5.1f}", flush=True)


if __name__ == "__main__":
    main()

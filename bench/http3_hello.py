"""What does one HTTP/3 request cost a server?

Measures processor time of the server's whole process tree per request (schedstat), one worker each,
the smallest ASGI application, by an h2load that was built with HTTP/3 (`--h2load COMMAND`, for
example "h2load-h3" or "chroot DIRECTORY h2load-h3"). Handshakes are in the figure, as many as
there are connections. The load generator has one processor, the server another.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from lib.cpu import split_processors, tree_nanoseconds
from lib.load import h2load
from lib.report import Row, print_table
from lib.servers import Contender, Place, asgiri, certificate, find_program, free_port, running

CERTIFICATE = ("--certfile", "{certfile}", "--keyfile", "{keyfile}")


def contenders() -> list[Contender]:
    hypercorn = ("-k", "uvloop", "-b", "{address}", "--quic-bind", "{address}", *CERTIFICATE)
    return [
        asgiri("--http3", *CERTIFICATE),
        Contender("hypercorn", "hypercorn", (*hypercorn, "{app}")),
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="directory of a venv with other servers")
    parser.add_argument("--h2load", default="h2load-h3", help="command line of an HTTP/3 h2load")
    parser.add_argument("--only", default="", help="measure servers whose name contains this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--streams", type=int, default=8)
    return parser.parse_args()


def measure(command: list[str], port: int, options: argparse.Namespace) -> float:
    """Microseconds of processor time per request."""
    load, own = split_processors()
    generator = shlex.split(options.h2load)
    url = f"https://127.0.0.1:{port}/"
    counts = {"connections": options.connections, "streams": options.streams}
    with running(command, port, own) as process:
        warm = max(options.requests // 10, options.connections)
        h2load(generator, url, load, requests=warm, options=("--h3",), **counts)
        before = tree_nanoseconds(process.pid)
        outcome = h2load(
            generator, url, load, requests=options.requests, options=("--h3",), **counts
        )
        spent = tree_nanoseconds(process.pid) - before
    if outcome.failed:
        print(f"{outcome.failed} of {options.requests} requests failed: {shlex.join(command)}")
    return spent / max(1, outcome.requests) / 1000


def main() -> None:
    options = parse_arguments()
    if find_program(shlex.split(options.h2load)[0]) is None:
        raise SystemExit("h2load with HTTP/3 is missing; see --h2load")
    rows = {}
    with certificate() as (certfile, keyfile):
        for _ in range(options.rounds):
            for contender in contenders():
                if options.only not in contender.name:
                    continue
                row = rows.setdefault(contender.name, Row(contender.name))
                place = Place(free_port(), certfile, keyfile)
                command = contender.command(place, options.peers)
                if command is None:
                    row.note = "missing on this machine"
                else:
                    row.values.append(measure(command, place.port, options))
    title = f"HTTP/3 hello, {options.connections} connections x {options.streams} streams"
    print_table(f"{title}: processor time per request", "us", list(rows.values()), compare="asgiri")


if __name__ == "__main__":
    main()

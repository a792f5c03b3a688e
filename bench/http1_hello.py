"""What does one HTTP/1.1 request cost a server?

Measures processor time of the server's whole process tree per request (schedstat), one worker each,
the smallest ASGI application, keep-alive connections by wrk. The load generator has one processor,
the server another; rounds go round all servers, so that what disturbs the machine disturbs all.
`--tls` and `--close` (a new connection for every request) measure those instead.

wrk sends the same head again and again, which flatters a server that remembers the last one of a
connection, as asgiri does: its parser is not even called. `--vary` gives each request a field of
its own. Browsers are in between; quote both figures or the second one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from lib.cpu import split_processors, tree_nanoseconds
from lib.load import wrk
from lib.report import Row, print_table
from lib.servers import Contender, Place, asgiri, certificate, find_program, free_port, running

CLOSE = ("-H", "Connection: close")
VARY = """
local count = 0
request = function()
    count = count + 1
    wrk.headers["X-Request-Number"] = count
    return wrk.format()
end
"""


def contenders(tls: bool) -> list[Contender]:
    ours = ("--certfile", "{certfile}", "--keyfile", "{keyfile}") if tls else ()
    ssl = ("--ssl-certfile", "{certfile}", "--ssl-keyfile", "{keyfile}") if tls else ()
    plain = ("--certfile", "{certfile}", "--keyfile", "{keyfile}") if tls else ()
    granian_tls = ("--ssl-certificate", "{certfile}", "--ssl-keyfile", "{keyfile}") if tls else ()
    uvicorn = ("{app}", "--port", "{port}", "--no-access-log", "--log-level", "warning", *ssl)
    granian = ("--interface", "asgi", "--loop", "uvloop", "--no-access-log", "--port", "{port}")
    return [
        asgiri(*ours, name="asgiri"),
        asgiri("--http1-parser", "h11", *ours, name="asgiri, h11"),
        asgiri("--app-thread", *ours, name="asgiri, app thread"),
        Contender("uvicorn, httptools", "uvicorn", ("--http", "httptools", *uvicorn)),
        Contender("uvicorn, zttp", "uvicorn", ("--http", "zttp", *uvicorn)),
        Contender("granian", "granian", (*granian, "--http", "1", *granian_tls, "{app}")),
        Contender("gunicorn", "gunicorn", ("-k", "asgi", "-b", "{address}", *plain, "{app}")),
        Contender("hypercorn", "hypercorn", ("-k", "uvloop", "-b", "{address}", *plain, "{app}")),
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="directory of a venv with other servers")
    parser.add_argument("--wrk", default="wrk")
    parser.add_argument("--only", default="", help="measure servers whose name contains this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--vary", action="store_true", help="no two heads alike")
    parser.add_argument("--close", action="store_true", help="a new connection for every request")
    return parser.parse_args()


def measure(command: list[str], port: int, options: argparse.Namespace) -> float:
    """Microseconds of processor time per request."""
    load, own = split_processors()
    url = f"{'https' if options.tls else 'http'}://127.0.0.1:{port}/"
    extra = list(CLOSE) if options.close else []
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        running(command, port, own) as process,
    ):
        if options.vary:
            script.write(VARY)
            script.flush()
            extra += ["-s", script.name]
        counts = {"connections": options.connections, "options": extra}
        wrk(options.wrk, url, load, seconds=1, **counts)  # warm
        before = tree_nanoseconds(process.pid)
        outcome = wrk(options.wrk, url, load, seconds=options.seconds, **counts)
        spent = tree_nanoseconds(process.pid) - before
    if outcome.failed and not options.close:
        raise SystemExit(f"{outcome.failed} of {outcome.requests} requests failed: {command}")
    return spent / outcome.requests / 1000


def main() -> None:
    options = parse_arguments()
    if find_program(options.wrk) is None:
        raise SystemExit("wrk is missing")
    rows = {}
    with certificate() as (certfile, keyfile):
        for _ in range(options.rounds):
            for contender in contenders(options.tls):
                if options.only not in contender.name:
                    continue
                row = rows.setdefault(contender.name, Row(contender.name))
                place = Place(free_port(), certfile, keyfile)
                command = contender.command(place, options.peers)
                if command is None:
                    row.note = "missing on this machine"
                else:
                    row.values.append(measure(command, place.port, options))
    kind = "a connection each" if options.close else f"{options.connections} connections"
    heads = "no two heads alike" if options.vary else "the same head each time"
    title = f"HTTP/1.1 hello{' over TLS' if options.tls else ''}, {kind}, {heads}"
    print_table(f"{title}: processor time per request", "us", list(rows.values()), compare="asgiri")


if __name__ == "__main__":
    main()

"""What a server costs besides requests: memory, time to start, and what a master in front adds."""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import re
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.clients import Http3Client
from lib.contenders import OUR_TLS, granian, gunicorn, ours, uvicorn
from lib.cpu import process_tree
from lib.report import Row
from lib.servers import PROJECT, Contender, Place, free_port, running

WORKERS = 4
SETTLE = 1.0
"""Seconds until the other workers have started, too."""
IDLE_CONNECTIONS = 1000
LOW_LOAD = 0.002
"""Seconds between two requests."""
LATENCY_REQUESTS = 500
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
BODY = b"Hello, world!"
IN_PROCESS = (
    "import apps, asgiri; asgiri.Server(apps.app, port={port}, certfile='{certfile}',"
    " keyfile='{keyfile}', enable_http3=True, access_log=False).run()"
)


@dataclass(frozen=True, slots=True)
class Setting:
    """How often to measure, and where the others are."""

    peers: Path | None
    rounds: int
    certificate: tuple[str, str]


def pss(pid: int) -> float:
    """Proportional share of memory, in MiB: pages that several processes share count in parts."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def is_worker(pid: int) -> bool:
    """Ours are called so; uvicorn's are spawned by multiprocessing."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"worker" in command or b"spawn_main" in command


Measure = Callable[[int, Place], float]
"""From the server's pid and where it listens."""


def compare(setting: Setting, contenders: Sequence[Contender], measure: Measure) -> list[Row]:
    """Start each of them in turns, on all processors, and measure."""
    rows = [Row(contender.name) for contender in contenders]
    for _ in range(setting.rounds):
        for contender, row in zip(contenders, rows, strict=True):
            place = Place(free_port(), *setting.certificate)
            command = contender.command(place, setting.peers)
            if command is None:
                row.note = "missing on this machine"
                continue
            try:
                with running(command, place.port, None) as process:
                    row.values.append(measure(process.pid, place))
            except SystemExit as error:
                row.note = f"failed: {str(error).splitlines()[0]}"
    return rows


def idle_worker(setting: Setting) -> list[Row]:
    """MiB of one of some workers that have served next to nothing."""

    def measure(pid: int, _: Place) -> float:
        time.sleep(SETTLE)
        return statistics.mean(map(pss, filter(is_worker, process_tree(pid))))

    workers = ("--workers", str(WORKERS))
    return compare(setting, [ours(*workers), uvicorn(*workers)], measure)


def idle_connection(setting: Setting) -> list[Row]:
    """KiB for each connection that has had one answer and is kept open."""

    def measure(pid: int, place: Place) -> float:
        with answered_connections(place, IDLE_CONNECTIONS // 10):
            pass  # what is allocated once
        time.sleep(SETTLE)
        before = sum(map(pss, process_tree(pid)))
        with answered_connections(place, IDLE_CONNECTIONS):
            after = sum(map(pss, process_tree(pid)))
        return (after - before) * 1024 / IDLE_CONNECTIONS

    return compare(setting, [ours(), uvicorn(), granian(), gunicorn()], measure)


@contextlib.contextmanager
def answered_connections(place: Place, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as opened:
        for _ in range(count):
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", place.port)))
            connection.sendall(REQUEST)
            answer = b""
            while not answer.endswith(BODY):
                part = connection.recv(4096)
                if not part:
                    raise SystemExit(f"closed after {answer!r}")
                answer += part
        yield


def start(setting: Setting) -> list[Row]:
    """Milliseconds from the command to the first answer."""
    # The others are installed, and pip compiles what it installs.
    compileall.compile_dir(PROJECT / "asgiri", quiet=1)
    began = time.monotonic()

    def measure(_: int, __: Place) -> float:
        return (time.monotonic() - began) * 1000

    rows: list[Row] = []
    for contender in (ours(), uvicorn(), granian(), gunicorn()):
        row = Row(contender.name)
        for _ in range(setting.rounds):
            began = time.monotonic()
            [once] = compare(Setting(setting.peers, 1, setting.certificate), [contender], measure)
            row.values += once.values
            row.note = once.note
        rows.append(row)
    return rows


def latency(setting: Setting) -> list[Row]:
    """Microseconds of the median answer over HTTP/3: with a master and a ring, and in one process.

    The row of ours has what is added.
    """
    alone = Contender("in one process", "", ("-c", IN_PROCESS))
    behind = Contender("behind a master", "", (*ours("--http3").arguments, *OUR_TLS))

    def measure(_: int, place: Place) -> float:
        return asyncio.run(median_answer(place))

    rows = compare(setting, [alone, behind], measure)
    added = Row("asgiri", [b - a for a, b in zip(rows[0].values, rows[1].values, strict=True)])
    return [added, *rows]


async def median_answer(place: Place) -> float:
    client = await Http3Client.connect(f"https://127.0.0.1:{place.port}")
    times = []
    for _ in range(LATENCY_REQUESTS):
        begin = time.perf_counter()
        await client.get("/")
        times.append(time.perf_counter() - begin)
        await asyncio.sleep(LOW_LOAD)
    await client.close()
    return statistics.median(times) * 1e6

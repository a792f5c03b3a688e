"""What does a worker weigh, and how long does the server take to start, with and without --preload?

Memory is PSS: pages that several processes share are counted in parts, so that the sum over all
processes is what the machine has less. Taken when the server has started, and again when each
worker has served some thousand requests: sharing ends where a page is written to, and CPython
writes to whatever it touches. The application is FastAPI with a table of 100,000 entries.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

from lib.clients import Http1Client
from lib.costs import is_worker, pss
from lib.cpu import process_tree, tree_nanoseconds
from lib.report import Row, print_table
from lib.servers import free_port, running

APP = "large_app:app"
MODES = {"without --preload": (), "with --preload": ("--preload",)}
CONNECTIONS = 16


class Measured:
    """Rows of one mode."""

    def __init__(self, name: str) -> None:
        self.worker, self.whole = Row(name), Row(name)
        self.worker_later, self.whole_later = Row(name), Row(name)
        self.start, self.cpu = Row(name), Row(name)

    def add(self, options: argparse.Namespace, flags: Sequence[str]) -> None:
        port = free_port()
        command = [sys.executable, "-m", "asgiri", APP, "--bind", f"127.0.0.1:{port}"]
        command += ["--workers", str(options.workers), "--no-access-log", *flags]
        begin = time.monotonic()
        with running(command, port, None) as process:
            self.start.values.append(time.monotonic() - begin)
            self.cpu.values.append(tree_nanoseconds(process.pid) / 1e9)
            take(process.pid, self.worker, self.whole)
            asyncio.run(serve_requests(port, options.requests * options.workers))
            take(process.pid, self.worker_later, self.whole_later)


def take(master: int, worker: Row, whole: Row) -> None:
    weights = {pid: pss(pid) for pid in process_tree(master)}
    workers = [weight for pid, weight in weights.items() if is_worker(pid)]
    worker.values.append(sum(workers) / len(workers))
    whole.values.append(sum(weights.values()))


async def serve_requests(port: int, count: int) -> None:
    async def client() -> None:
        connection = await Http1Client.connect(f"http://127.0.0.1:{port}")
        for _ in range(count // CONNECTIONS):
            await connection.get("/")
        await connection.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--requests", type=int, default=1000, help="for each worker")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    measured = {name: Measured(name) for name in MODES}
    for _ in range(options.rounds):
        for name, flags in MODES.items():
            measured[name].add(options, flags)
    titles = {
        "worker": ("One worker, when the server has started", "MiB"),
        "worker_later": (f"One worker, after {options.requests} requests each", "MiB"),
        "whole": (f"All processes, {options.workers} workers, when it has started", "MiB"),
        "whole_later": (f"All processes, after {options.requests} requests each", "MiB"),
        "start": ("From the command to the first answer", "s"),
        "cpu": ("Processor time of that", "s"),
    }
    for field, (title, unit) in titles.items():
        rows = [getattr(each, field) for each in measured.values()]
        print_table(title, unit, rows, compare=rows[0].name)


if __name__ == "__main__":
    main()

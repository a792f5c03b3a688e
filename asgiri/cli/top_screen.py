"""The screen of `asgiri top`, drawn by rich: one row for each worker, as on the dashboard."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asgiri.cli.worker_table import COLUMNS, headline
from asgiri.ctl import ControlClient
from asgiri.errors import StartError
from asgiri.ipc.board import BoardReader
from asgiri.status import ProcessTable, build_status, read_board

__all__ = ["show"]

BARS: Final = " ▁▂▃▄▅▆▇█"
KEPT: Final = 24
"""Looks that the curve of a worker shows."""
WIDE: Final = 140
"""Columns of characters that the whole table takes."""
PLAIN_WIDTH: Final = 160
"""Where there is no terminal to ask."""
ESSENTIAL: Final = ("worker", "pid", "gen", "state", "active", "lag", "h1/h2/h3", "ring", "memory")
"""What is shown on narrower ones."""
STYLES: Final = {
    "ready": "green",
    "blocked": "bold red",
    "booting": "blue",
    "waiting": "blue",
    "draining": "yellow",
    "leaving": "dim",
}

Status = Mapping[str, Any]


class Pace:
    """What changes between two looks: requests and processor time by worker, for each second."""

    def __init__(self) -> None:
        self._last: Status | None = None
        self.rates: dict[int, deque[float]] = {}
        self.processor: dict[int, float] = {}

    def look(self, status: Status) -> None:
        """Compare with the last look."""
        earlier = {} if self._last is None else {w["worker_id"]: w for w in self._last["workers"]}
        seconds = 1.0 if self._last is None else max(0.001, status["time"] - self._last["time"])
        rates: dict[int, deque[float]] = {}
        self.processor = {}
        for worker in status["workers"]:
            number = worker["worker_id"]
            before = earlier.get(number, worker)
            done = sum(worker["requests"].values()) - sum(before["requests"].values())
            rates[number] = self.rates.get(number, deque(maxlen=KEPT))
            rates[number].append(done / seconds)
            spent = worker["cpu_seconds"] - before["cpu_seconds"]
            self.processor[number] = 100 * max(0.0, spent) / seconds
        self.rates = rates
        self._last = status


def sparkline(values: deque[float], most: float) -> str:
    """Draw values as bars of eight heights."""
    scale = (len(BARS) - 1) / max(most, 1.0)
    return "".join(BARS[min(len(BARS) - 1, round(value * scale))] for value in values)


def draw(status: Status, pace: Pace, width: int) -> Group:
    """Draw one look."""
    columns = [each for each in COLUMNS if width >= WIDE or each.title in ESSENTIAL]
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="left" if column.left else "right", no_wrap=True)
    table.add_column("cpu", justify="right", no_wrap=True)
    table.add_column("req/s", justify="right", no_wrap=True)
    if width >= WIDE:
        table.add_column("", no_wrap=True, min_width=KEPT)
    most = max((max(rates) for rates in pace.rates.values() if rates), default=1.0)
    for worker in status["workers"]:
        rates = pace.rates[worker["worker_id"]]
        style = STYLES.get(worker["state"], "")
        cells = [
            Text(column.text(worker), style=style if column.title == "state" else "")
            for column in columns
        ]
        processor = pace.processor[worker["worker_id"]]
        cells += [Text(f"{processor:.0f}%"), Text(f"{rates[-1]:.0f}")]
        if width >= WIDE:
            cells.append(Text(sparkline(rates, most), style="cyan"))
        table.add_row(*cells)
    first, *rest = headline(status)
    total = sum(rates[-1] for rates in pace.rates.values() if rates)
    refused = sum(status["totals"]["refusals"].values())
    dropped = sum(status["totals"]["drops"].values())
    errors = status["totals"]["app_errors"]
    facts = f"{total:.0f} requests/s, {errors} errors, {refused} refused, {dropped} dropped"
    lines = [Text(first, style="bold"), *(Text(line) for line in rest), Text(facts), Text("")]
    return Group(*lines, table)


def show(client: ControlClient, *, interval: float, once: bool) -> None:
    """Draw until the server ends, or one time. Raises StartError and RefusedError."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    processes, pace = ProcessTable(), Pace()
    with client.watch() as reader:
        pace.look(_read(reader, processes))
        time.sleep(interval if once else 0)
        status = _read(reader, processes)
        pace.look(status)
        if once:
            console.print(draw(status, pace, console.width))
            return
        first = draw(status, pace, console.width)
        with Live(first, console=console, screen=True, auto_refresh=False) as live:
            while client.is_open:
                time.sleep(interval)
                status = _read(reader, processes)
                pace.look(status)
                live.update(draw(status, pace, console.width), refresh=True)
    console.print("the server has ended, or its program was exchanged")


def _read(reader: BoardReader, processes: ProcessTable) -> Status:
    snapshot = read_board(reader)
    if snapshot is None:
        raise StartError("top: the master stands still")
    return build_status(snapshot, processes)

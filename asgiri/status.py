"""What the board says, in words and units: the one document that /status, `asgiri ctl status` and
`asgiri top` show. Names stay; what is new comes beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import psutil

from asgiri.ipc.board import (
    BoardReader,
    BoardSnapshot,
    MasterCell,
    ReloadState,
    Row,
    RowCell,
)
from asgiri.ipc.scoreboard import DURATION_BOUNDS, AssignmentCell, Cell, WorkerState

__all__ = ["ProcessTable", "build_status", "read_board"]

BLOCKED_AFTER: Final = 0.25
"""Seconds without a heartbeat, of which there are twenty a second, after which a worker that serves
is called blocked."""
READ_ATTEMPTS: Final = 50
READ_PAUSE: Final = 0.002
"""Seconds between two attempts: the master writes for 0.1 ms, four times a second."""

VERSIONS: Final = {
    "1": Cell.REQUESTS_HTTP1,
    "2": Cell.REQUESTS_HTTP2,
    "3": Cell.REQUESTS_HTTP3,
}
OPENED: Final = {"1": Cell.HTTP1_OPENED, "2": Cell.HTTP2_OPENED, "3": Cell.QUIC_OPENED}
RESPONSES: Final = {f"{digit}xx": Cell(Cell.RESPONSES_1XX + digit - 1) for digit in range(1, 6)}
COUNTED: Final = (
    Cell.ACCESS_LINES_LEFT_OUT,
    Cell.APP_ERRORS,
    Cell.BODY_BYTES_IN,
    Cell.BODY_BYTES_OUT,
    Cell.DATAGRAMS_BLOCKED,
    Cell.DATAGRAMS_FAILED,
    Cell.DATAGRAMS_SENT,
    Cell.HANDSHAKE_TIMEOUTS,
    Cell.LOG_LINES_DROPPED,
    Cell.RESETS_SENT,
    Cell.RING_CORRUPT,
    Cell.RING_RECORDS,
    Cell.TLS_HANDSHAKE_FAILURES,
    Cell.WEBSOCKETS_TOTAL,
)
"""Counters of workers that are told by their own names."""
CONNECTIONS: Final = tuple(
    cell for cell in MasterCell if MasterCell.ACCEPTED <= cell <= MasterCell.STALE_BURSTS
)
DATAGRAMS: Final = tuple(
    cell for cell in MasterCell if MasterCell.DATAGRAMS <= cell <= MasterCell.MAP_FULL
)
ENDINGS: Final = {
    "crashed": MasterCell.WORKERS_CRASHED,
    "failed": MasterCell.WORKERS_FAILED,
    "hung": MasterCell.WORKERS_HUNG,
    "recycled": MasterCell.WORKERS_RECYCLED,
}


def read_board(
    reader: BoardReader, *, sleep: Callable[[float], None] = time.sleep
) -> BoardSnapshot | None:
    """Return what it says; None when the master stands still in the midst of writing."""
    for _ in range(READ_ATTEMPTS):
        snapshot = reader.read()
        if snapshot is not None:
            return snapshot
        sleep(READ_PAUSE)
    return None


def build_status(snapshot: BoardSnapshot, processes: ProcessTable) -> dict[str, Any]:
    """Write it down. The monotonic clock is the machine's, so that ages can be told."""
    get = snapshot.get
    now_ns = time.monotonic_ns()
    rows = sorted(snapshot.rows, key=_place)
    pids = [row.get(Cell.PID) for row in rows]
    processes.keep({get(MasterCell.PID), *pids})
    workers = [_worker(row, get(MasterCell.BEAT_NS), processes) for row in rows]
    states = [worker["state"] for worker in workers]
    return {
        **snapshot.facts(),
        "time": time.time(),
        "uptime": (now_ns - get(MasterCell.STARTED_NS)) / 1e9,
        "generation": get(MasterCell.GENERATION),
        "stopping": bool(get(MasterCell.STOPPING)),
        "balances_requests": bool(get(MasterCell.BALANCES_REQUESTS)),
        "reload": {
            "state": ReloadState(get(MasterCell.RELOAD_STATE)).name.lower(),
            "done": get(MasterCell.RELOADS),
            "failed": get(MasterCell.RELOADS_FAILED),
            "upgrades": get(MasterCell.UPGRADES),
        },
        "master": {
            "pid": get(MasterCell.PID),
            "silence": (now_ns - get(MasterCell.BEAT_NS)) / 1e9,
            "busy_seconds": get(MasterCell.BUSY_US) / 1e6,
            "log_lines_dropped": get(MasterCell.LOG_LINES_DROPPED),
            **processes.measure(get(MasterCell.PID)),
        },
        "counts": {
            "wanted": get(MasterCell.TARGET),
            "ready": get(MasterCell.READY),
            "blocked": states.count("blocked"),
            "booting": states.count("booting"),
            "draining": states.count("draining"),
            "left_out": get(MasterCell.ROWS_LEFT_OUT),
        },
        "workers": workers,
        "started": {
            "workers": get(MasterCell.WORKERS_SPAWNED),
            "admin": get(MasterCell.ADMIN_SPAWNED),
        },
        "ended": {name: get(cell) for name, cell in ENDINGS.items()},
        "totals": _totals(snapshot),
        "connections": {cell.name.lower(): get(cell) for cell in CONNECTIONS},
        "datagrams": {cell.name.lower(): get(cell) for cell in DATAGRAMS},
        "control": {
            "requests": get(MasterCell.CONTROL_REQUESTS),
            "refused": get(MasterCell.CONTROL_REFUSED),
        },
    }


def _place(row: Row) -> tuple[int, int]:
    return row.get(RowCell.SLOT), -row.assigned(AssignmentCell.GENERATION)


def _worker(row: Row, beat_ns: int, processes: ProcessTable) -> dict[str, Any]:
    get = row.get
    pid = get(Cell.PID)
    silence = max(0.0, (beat_ns - get(Cell.BEAT_NS)) / 1e9) if get(Cell.BEAT_NS) else 0.0
    return {
        "slot": get(RowCell.SLOT),
        "worker_id": row.assigned(AssignmentCell.WORKER_ID),
        "pid": pid,
        "generation": row.assigned(AssignmentCell.GENERATION),
        "state": _state(row, silence),
        "ready": bool(get(RowCell.READY)),
        "age": (beat_ns - get(RowCell.SPAWNED_NS)) / 1e9,
        "silence": silence,
        "lag": get(Cell.LAG_EWMA_US) / 1e6,
        "lag_max": get(Cell.LAG_MAX_US) / 1e6,
        "protocol_lag": get(Cell.MAIN_LAG_EWMA_US) / 1e6,
        "requests_active": get(Cell.REQUESTS_ACTIVE),
        "requests": {version: get(cell) for version, cell in VERSIONS.items()},
        "responses": {status: get(cell) for status, cell in RESPONSES.items()},
        "connections": {
            "1": get(Cell.TCP_OPEN) - min(get(Cell.TCP_OPEN), get(Cell.HTTP2_OPEN)),
            "2": get(Cell.HTTP2_OPEN),
            "3": get(Cell.QUIC_OPEN),
        },
        "websockets": get(Cell.WEBSOCKETS_OPEN),
        "half_open": get(Cell.QUIC_HALF_OPEN),
        "unread": _unread(row),
        "ring": {
            "size": get(RowCell.RING_SIZE),
            "fill": get(RowCell.RING_FILL),
            "drops_full": row.assigned(AssignmentCell.RING_DROP_FULL),
            "drops_half_full": row.assigned(AssignmentCell.RING_DROP_INITIAL),
        },
        "taken_back": row.assigned(AssignmentCell.TAKEN_BACK),
        "app_errors": get(Cell.APP_ERRORS),
        **processes.measure(pid),
    }


def _unread(row: Row) -> int:
    """Connections that it was given and has not read."""
    return max(0, row.assigned(AssignmentCell.TCP_ASSIGNED) - row.get(Cell.TCP_ADOPTED))


def _state(row: Row, silence: float) -> str:
    target = row.assigned(AssignmentCell.TARGET_STATE)
    said = row.get(Cell.STATE)
    if target == WorkerState.DRAINED or said in (WorkerState.DRAINED, WorkerState.FAILED):
        return "leaving"
    if target == WorkerState.DRAINING or said == WorkerState.DRAINING:
        return "draining"
    if said != WorkerState.READY:
        return "booting"
    if silence > BLOCKED_AFTER:
        return "blocked"
    # Ready before the others of its generation: nothing is sent to it yet.
    return "ready" if row.get(RowCell.READY) else "waiting"


def _totals(snapshot: BoardSnapshot) -> dict[str, Any]:
    total = snapshot.total
    pages = [snapshot.retired, *snapshot.rows]
    buckets = zip(*(page.scoreboard.durations() for page in pages), strict=True)
    refusals: dict[str, int] = {}
    for page in pages:
        for name, count in page.scoreboard.refusals().items():
            refusals[name] = refusals.get(name, 0) + count
    return {
        "requests": {version: total(cell) for version, cell in VERSIONS.items()},
        "connections_opened": {version: total(cell) for version, cell in OPENED.items()},
        "connections_closed": {"tcp": total(Cell.TCP_CLOSED), "quic": total(Cell.QUIC_CLOSED)},
        "responses": {status: total(cell) for status, cell in RESPONSES.items()},
        "durations": {
            "bounds": [bound / 1e6 for bound in DURATION_BOUNDS],
            "counts": [sum(counts) for counts in buckets],
            "sum": total(Cell.DURATION_SUM_US) / 1e6,
        },
        **{cell.name.lower(): total(cell) for cell in COUNTED},
        "refusals": refusals,
        "drops": {name: count for name, count in snapshot.drops().items() if count},
    }


class ProcessTable:
    """Processor time and memory of the server's processes, as the system tells them."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all others: their numbers may come again."""
        self._processes = {pid: self._processes[pid] for pid in pids if pid in self._processes}

    def measure(self, pid: int) -> dict[str, float]:
        """Return cpu_seconds and rss; zeros for one that is gone or hidden from us."""
        try:
            process = self._processes.get(pid)
            if process is None:
                process = self._processes[pid] = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                return {"cpu_seconds": times.user + times.system, "rss": process.memory_info().rss}
        except (psutil.Error, ValueError):
            return {"cpu_seconds": 0.0, "rss": 0}

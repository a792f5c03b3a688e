"""Processor time of processes, from /proc/PID/task/TID/schedstat: nanoseconds, no ticks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def process_tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return found


def cpu_nanoseconds(pids: Iterable[int]) -> int:
    """Time that all threads of these processes have run so far."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    total += int((task / "schedstat").read_text().split()[0])
    return total


def tree_nanoseconds(pid: int) -> int:
    return cpu_nanoseconds(process_tree(pid))


def split_processors() -> tuple[int, int]:
    """One processor for the load generator and another for the server."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        raise SystemExit("two processors are needed: one for the load, one for the server")
    return available[0], available[-1]

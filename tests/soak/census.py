"""What a server at rest holds: nothing that clients have left, and no more than before."""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.admin import Admin
from tests.support.fetch import fetch
from tests.support.metrics import Metrics
from tests.support.server import Server

PATIENCE = 180.0
"""Longer than QUIC's idle timeout and a drain: clients that a fault took away end by themselves."""
EMPTY_AT_REST = (
    "asgiri_requests_active",
    "asgiri_connections_open",
    "asgiri_websockets_open",
    "asgiri_quic_half_open",
    "asgiri_connections_waiting",
    "asgiri_connections_idle",
    "asgiri_worker_connections_unread",
    "asgiri_worker_ring_bytes",
    "asgiri_reloading",
)
"""Tables that have an entry for each client, as /metrics tells their sizes."""
DESCRIPTORS = 3
TASKS = 2
"""What may be more at a moment."""
MASTER_GROWTH = 8 << 20
WORKER_GROWTH = 24 << 20
"""Bytes: what an allocator may spread after its first minutes; a leak has no end."""


@dataclass(frozen=True, slots=True)
class Usage:
    descriptors: int
    memory: int
    """Proportional set size in bytes: what it shares counts by share."""
    tasks: int | None = None
    objects: int | None = None


@dataclass(frozen=True, slots=True)
class Census:
    """One look at rest: by role, and pid, so that processes are compared with themselves."""

    at: float
    master: Usage
    admin: Usage
    workers: dict[int, Usage]


async def wait_rest(server: Server, admin: Admin, workers: int) -> Metrics:
    """Return when no client has left anything behind and old workers are gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        metrics = await admin.metrics()
        left = {name: metrics.sum(name) for name in EMPTY_AT_REST if metrics.sum(name)}
        states = metrics.by("asgiri_workers", "state")
        if not left and states["ready"] == workers == sum(states.values()):
            return metrics
        assert time.monotonic() < deadline, f"at rest, but {left or states}"
        await asyncio.sleep(0.2)


async def take(server: Server, admin_pid: int, workers: Sequence[int]) -> Census:
    accounts = await _accounts(server, set(workers))
    return Census(
        at=time.monotonic(),
        master=usage(server.pid),
        admin=usage(admin_pid),
        workers={pid: usage(pid, *accounts[pid]) for pid in workers},
    )


def usage(pid: int, tasks: int | None = None, objects: int | None = None) -> Usage:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
    assert match is not None, rollup
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Usage(descriptors, int(match[1]) << 10, tasks, objects)


async def _accounts(server: Server, pids: set[int]) -> dict[int, tuple[int, int]]:
    """Ask on new connections until each worker has told of itself."""
    accounts: dict[int, tuple[int, int]] = {}
    deadline = time.monotonic() + PATIENCE
    while not pids <= accounts.keys():
        assert time.monotonic() < deadline, f"only {accounts.keys()} of {pids} answered"
        told = json.loads((await fetch(server, "/account")).body)
        accounts[told["pid"]] = told["tasks"], told["objects"]
    return accounts


def growth(looks: Sequence[Census]) -> list[str]:
    """What has grown since the first look, which comes after a warm-up."""
    first, last = looks[0], looks[-1]
    complaints = []
    for name in ("master", "admin"):
        before, after = getattr(first, name), getattr(last, name)
        if after.descriptors > before.descriptors + DESCRIPTORS:
            complaints.append(f"{name}: {before.descriptors} -> {after.descriptors} descriptors")
        if after.memory > before.memory + MASTER_GROWTH:
            complaints.append(f"{name}: {mib(before.memory)} -> {mib(after.memory)}")
    fresh = list(first.workers.values())
    allowed = {
        "descriptors": max(usage.descriptors for usage in fresh) + DESCRIPTORS,
        "tasks": max(usage.tasks or 0 for usage in fresh) + TASKS,
        "memory": max(usage.memory for usage in fresh) + WORKER_GROWTH,
    }
    for look in looks[1:]:
        for pid, usage in look.workers.items():
            for name, limit in allowed.items():
                if (getattr(usage, name) or 0) > limit:
                    complaints.append(f"worker {pid}: {name} {getattr(usage, name)} > {limit}")
    return complaints


def table(looks: Sequence[Census]) -> list[str]:
    """One line for each look."""
    lines = ["     s  master fds/MiB  admin fds/MiB  worker fds    MiB  tasks  objects"]
    for look in looks:
        workers = look.workers.values()
        lines.append(
            f"{look.at - looks[0].at:6.0f}"
            f"{look.master.descriptors:10d}/{look.master.memory / (1 << 20):5.1f}"
            f"{look.admin.descriptors:9d}/{look.admin.memory / (1 << 20):5.1f}"
            f"{max(usage.descriptors for usage in workers):12d}"
            f"{max(usage.memory for usage in workers) / (1 << 20):7.1f}"
            f"{max(usage.tasks or 0 for usage in workers):7d}"
            f"{statistics.mean(usage.objects or 0 for usage in workers):9.0f}"
        )
    return lines


def mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"

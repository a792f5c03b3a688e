"""Keep the board (`ipc.board`): copy what the master's parts and all workers have counted.

Only while somebody watches, who says so by `watch` and is given a descriptor of its memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from asgiri import logs
from asgiri.ipc.board import DROPS, BoardWriter, MasterCell, ReloadState, RowCell
from asgiri.ipc.scoreboard import DropReason
from asgiri.ipc.segment import BoardMemory
from asgiri.master.dispatcher import Dispatcher
from asgiri.master.fleet import Fleet
from asgiri.master.loop import EventLoop, Timer
from asgiri.master.processes import WorkerHandle
from asgiri.master.receiver import Receiver, ReceiverStatistics
from asgiri.master.steering import Steering
from asgiri.master.supervisor import ReloadPhase, Supervisor

INTERVAL: Final = 0.25
"""Seconds between two publications; so much longer for each FULL_BOARD workers."""
FULL_BOARD: Final = 256
"""Workers whose rows take 1.1 ms: 0.4 % of a processor at that interval, whatever their number."""

_RELOAD_STATES: Final = {phase: ReloadState[phase.name] for phase in ReloadPhase}
_WORKERS: Final = {
    MasterCell.WORKERS_SPAWNED: "spawned",
    MasterCell.WORKERS_CRASHED: "crashed",
    MasterCell.WORKERS_FAILED: "failed",
    MasterCell.WORKERS_HUNG: "hung",
    MasterCell.WORKERS_RECYCLED: "recycled",
    MasterCell.RELOADS: "reloads",
    MasterCell.RELOADS_FAILED: "reloads_failed",
}


def _cells(first: MasterCell, last: MasterCell) -> dict[MasterCell, str]:
    """Cells that have the names of the statistics they come from."""
    return {cell: cell.name.lower() for cell in MasterCell if first <= cell <= last}


_ACCEPTOR: Final = _cells(MasterCell.ACCEPTED, MasterCell.OVERDUE)
_DISPATCHER: Final = _cells(MasterCell.NOBODY_ELIGIBLE, MasterCell.STALE_BURSTS)
_RECEIVER: Final = _cells(MasterCell.DATAGRAMS, MasterCell.KERNEL_DROPS)
_STEERING: Final = _cells(MasterCell.VERSIONS_SENT, MasterCell.MAP_FULL)
_CARRIED: Final = frozenset(
    {
        *(MasterCell.BUSY_US, MasterCell.EXPIRED, MasterCell.OVERDUE),
        *(MasterCell.LOG_LINES_DROPPED, MasterCell.CONTROL_REQUESTS, MasterCell.CONTROL_REFUSED),
        *_DISPATCHER,
        *(cell for cell in _RECEIVER if cell is not MasterCell.KERNEL_DROPS),
        *(cell for cell in _STEERING if cell is not MasterCell.MAP_ENTRIES),
        *(DROPS + reason for reason in DropReason),
    }
)
"""Counters that begin anew with each program of the master: what came before is added. Those that
are missing here are carried on by the part that counts them, or are kept by the kernel."""


class Reporting:
    """Owns the board."""

    def __init__(
        self,
        loop: EventLoop,
        supervisor: Supervisor,
        dispatcher: Dispatcher,
        steering: Steering[WorkerHandle] | None,
        receivers: Sequence[Receiver],
        fleet: Fleet,
    ) -> None:
        self._loop = loop
        self._supervisor = supervisor
        self._dispatcher = dispatcher
        self._steering = steering
        self._receivers = receivers
        self._fleet = fleet
        self._memory = BoardMemory.create()
        self._writer = BoardWriter(self._memory.buffer)
        self._watchers = 0
        self._timer: Timer | None = None
        self._before: dict[int, int] = {}
        self._started_ns = time.monotonic_ns()
        self._upgrades = 0
        self.facts: dict[str, Any] = {}
        """What is no number. Told with the next publication."""
        self.more: Callable[[], Mapping[int, int]] = dict
        """Numbers of parts that are made later."""
        fleet.on_reaped.append(self._reaped)
        fleet.on_switched = self.renew

    def fileno(self) -> int:
        """Tell the descriptor that a watcher is given."""
        return self._memory.fd

    # Watchers

    def watch(self) -> None:
        """Keep the board up to date from now on: somebody looks at it."""
        self._watchers += 1
        self.publish()

    def unwatch(self) -> None:
        """One watcher less."""
        self._watchers -= 1
        if not self._watchers and self._timer is not None:
            self._timer.cancel()

    def renew(self) -> None:
        """Something has changed that watchers should not hear of late."""
        if self._watchers:
            self.publish()

    def publish(self) -> None:
        """Copy everything, now and again as long as anybody watches."""
        writer, workers = self._writer, self._fleet.workers
        writer.begin()
        for worker in workers.values():
            writer.add_row(worker.scoreboard, worker.assignments, self._row(worker))
        writer.set_facts(self.facts)
        writer.publish(self._head())
        if self._timer is not None:
            self._timer.cancel()
        if self._watchers:
            interval = INTERVAL * (1 + len(workers) // FULL_BOARD)
            self._timer = self._loop.call_later(interval, self.publish)

    def _row(self, worker: WorkerHandle) -> dict[RowCell, int]:
        fill, size = worker.record_bytes()
        return {
            RowCell.SLOT: worker.slot,
            RowCell.READY: int(worker.worker_id in self._fleet.ready),
            RowCell.RING_SIZE: size,
            RowCell.RING_FILL: fill,
            RowCell.SPAWNED_NS: worker.spawned_ns,
        }

    def _head(self) -> dict[int, int]:
        head = {**self._own(), **self._counted(), **self.more()}
        for cell, count in self._before.items():
            head[cell] = head.get(cell, 0) + count
        return head

    def _own(self) -> dict[int, int]:
        supervisor = self._supervisor
        return {
            MasterCell.PID: os.getpid(),
            MasterCell.BEAT_NS: time.monotonic_ns(),
            MasterCell.STARTED_NS: self._started_ns,
            MasterCell.BUSY_US: int(self._loop.busy * 1e6),
            MasterCell.GENERATION: supervisor.generation,
            MasterCell.TARGET: supervisor.target,
            MasterCell.READY: len(self._fleet.ready),
            MasterCell.RELOAD_STATE: _RELOAD_STATES[supervisor.reload_phase],
            MasterCell.STOPPING: int(supervisor.is_ending),
            MasterCell.BALANCES_REQUESTS: int(self._dispatcher.hold),
            MasterCell.UPGRADES: self._upgrades,
            MasterCell.LOG_LINES_DROPPED: logs.lines_dropped(),
        }

    def _counted(self) -> dict[int, int]:
        head = _named(_WORKERS, self._supervisor.statistics)
        head |= _named(_ACCEPTOR, self._fleet.acceptor.statistics())
        head |= _named(_DISPATCHER, self._dispatcher.statistics())
        if self._steering is not None:
            statistics = self._steering.statistics()
            head |= _named(_STEERING, statistics)
            for reason in DropReason:
                head[DROPS + reason] = statistics.drops[reason.name.lower()]
        head |= _sum_up(receiver.statistics() for receiver in self._receivers)
        return head

    def _reaped(self, worker: WorkerHandle) -> None:
        """Keep what a worker has counted when it is taken apart."""
        self._writer.retire(worker.scoreboard)

    # A takeover

    def to_state(self) -> dict[str, Any]:
        """Tell the next program of this process what would begin anew."""
        head = self._head()
        return {
            "started_ns": self._started_ns,
            "upgrades": self._upgrades,
            "retired": self._writer.retired(),
            "before": {str(int(cell)): head.get(cell, 0) for cell in _CARRIED},
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with what `to_state` told. The board is a new one: the next program may have
        another layout, and its watchers are started anew.
        """
        self._started_ns = int(state["started_ns"])
        self._upgrades = int(state["upgrades"]) + 1
        self._writer.restore(state["retired"])
        self._before = {int(cell): int(count) for cell, count in state["before"].items()}

    def close(self) -> None:
        """Give the memory back; watchers keep what they have mapped."""
        if self._timer is not None:
            self._timer.cancel()
        self._writer.release()
        self._memory.close()


def _named(cells: Mapping[MasterCell, str], statistics: object) -> dict[int, int]:
    return {cell: getattr(statistics, name) for cell, name in cells.items()}


def _sum_up(all_statistics: Iterable[ReceiverStatistics]) -> dict[int, int]:
    sums: dict[int, int] = {}
    for statistics in all_statistics:
        for cell, count in _named(_RECEIVER, statistics).items():
            sums[cell] = sums.get(cell, 0) + count
    return sums

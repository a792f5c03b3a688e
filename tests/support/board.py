"""A board without processes: what a test says the master and the workers have counted."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from asgiri.ipc.board import DROPS, BoardReader, BoardWriter, MasterCell, RowCell, board_size
from asgiri.ipc.scoreboard import (
    PAGE_SIZE,
    AssignmentCell,
    Assignments,
    Cell,
    DropReason,
    Scoreboard,
    WorkerState,
)
from asgiri.status import ProcessTable, build_status, read_board


def page() -> memoryview:
    return memoryview(bytearray(PAGE_SIZE))


class Worker:
    """The pages of one worker."""

    def __init__(
        self,
        slot: int = 0,
        *,
        worker_id: int = 7,
        ready: bool = True,
        target: int = 0,
        generation: int = 1,
        cells: Mapping[int, int] | None = None,
    ) -> None:
        self.scoreboard, self.assignments = Scoreboard(page()), Assignments(page())
        self.scoreboard.claim(worker_id, os.getpid())
        self.assignments.claim(worker_id, generation)
        self.assignments.set(AssignmentCell.TARGET_STATE, target)
        self.own = {RowCell.SLOT: slot, RowCell.READY: int(ready)}
        beat = {Cell.STATE: WorkerState.READY, Cell.BEAT_NS: time.monotonic_ns()}
        for cell, value in {**beat, **(cells or {})}.items():
            self.scoreboard.set(cell, value)


class Board:
    """A board of `rows` rows, with both ends."""

    def __init__(self, rows: int = 8) -> None:
        self.memory = bytearray(board_size(rows))
        self.writer = BoardWriter(memoryview(self.memory))
        self.reader = BoardReader(memoryview(self.memory))

    def publish(
        self, *workers: Worker, drops: Mapping[DropReason, int] | None = None, **head: int
    ) -> None:
        self.writer.begin()
        for worker in workers:
            self.writer.add_row(worker.scoreboard, worker.assignments, worker.own)
        numbers: dict[int, int] = {
            MasterCell.BEAT_NS: time.monotonic_ns(),
            MasterCell.STARTED_NS: time.monotonic_ns(),
            MasterCell.PID: os.getpid(),
        }
        numbers |= {DROPS + reason: count for reason, count in (drops or {}).items()}
        numbers |= {MasterCell[name.upper()]: value for name, value in head.items()}
        self.writer.publish(numbers)

    def status(self) -> dict[str, Any]:
        snapshot = read_board(self.reader)
        assert snapshot is not None
        return build_status(snapshot, ProcessTable())


def status_of(*workers: Worker, **head: Any) -> dict[str, Any]:
    board = Board()
    board.writer.set_facts({"asgiri": "1.2.3", "python": "3.99", "app": "main:app", "name": ""})
    board.publish(*workers, **head)
    return board.status()

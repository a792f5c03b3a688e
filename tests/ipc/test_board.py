"""The board: what is published is read whole or not at all, and no sum counts a worker twice."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiri.errors import IpcError
from asgiri.ipc import segment
from asgiri.ipc.board import (
    DROPS,
    BoardReader,
    BoardSnapshot,
    BoardWriter,
    MasterCell,
    RowCell,
    board_size,
)
from asgiri.ipc.scoreboard import (
    COUNTERS,
    PAGE_SIZE,
    REFUSALS,
    AssignmentCell,
    Cell,
    DropReason,
    Refusal,
)
from asgiri.ipc.segment import BoardMemory
from tests.support.board import Board, Worker

U32 = st.integers(0, (1 << 32) - 1)


def read(board: Board) -> BoardSnapshot:
    snapshot = board.reader.read()
    assert snapshot is not None
    return snapshot


@settings(max_examples=30)
@given(
    st.dictionaries(st.sampled_from([c for c in Cell if c > Cell.PID]), U32),
    st.dictionaries(st.sampled_from(list(Refusal)), U32),
    st.dictionaries(st.sampled_from(list(AssignmentCell)[2:]), U32),
)
def test_a_watcher_reads_what_worker_and_master_have_counted(cells, refusals, assigned):
    worker, board = Worker(slot=3), Board()
    for cell, value in cells.items():
        worker.scoreboard.set(cell, value)
    for reason, value in refusals.items():
        worker.scoreboard.refuse(reason, value)
    for cell, value in assigned.items():
        worker.assignments.set(cell, value)
    board.publish(worker, accepted=7)
    snapshot = read(board)
    (row,) = snapshot.rows
    assert all(row.get(cell) == value for cell, value in cells.items())
    assert all(row.assigned(cell) == value for cell, value in assigned.items())
    assert row.scoreboard.refusals() == {
        reason.name.lower(): count for reason, count in refusals.items() if count
    }
    assert row.get(RowCell.SLOT) == 3
    assert snapshot.get(MasterCell.ACCEPTED) == 7


def test_nothing_is_read_before_something_was_published():
    assert Board().reader.read() is None


@settings(max_examples=60)
@given(st.integers(16, board_size(2) - 1), st.integers(1, 255))
def test_a_copy_that_was_torn_is_not_used(offset, change):
    board = Board()
    board.publish(Worker(), Worker())
    assert board.reader.read() is not None
    board.memory[offset] ^= change
    assert board.reader.read() is None


def test_the_board_of_another_version_is_refused():
    board = Board()
    board.publish()
    board.memory[0] ^= 1
    with pytest.raises(IpcError):
        board.reader.read()


def test_counters_of_workers_that_are_gone_stay_in_the_totals():
    board, old, new = Board(), Worker(), Worker()
    old.scoreboard.add(Cell.REQUESTS_HTTP1, 5)
    old.scoreboard.add(Cell.TCP_OPEN, 2)
    old.scoreboard.observe(150)
    old.scoreboard.refuse(Refusal.HTTP1_BAD_HOST)
    new.scoreboard.add(Cell.REQUESTS_HTTP1, 1)
    board.publish(old, new)
    assert read(board).total(Cell.REQUESTS_HTTP1) == 6
    board.writer.retire(old.scoreboard)
    board.publish(new)
    snapshot = read(board)
    assert snapshot.total(Cell.REQUESTS_HTTP1) == 6
    assert snapshot.total(Cell.DURATION_SUM_US) == 150
    assert snapshot.total(REFUSALS + Refusal.HTTP1_BAD_HOST) == 1
    assert sum(snapshot.retired.scoreboard.durations()) == 1
    assert snapshot.retired.get(Cell.TCP_OPEN) == 0


def test_the_totals_change_only_with_a_publication():
    board, worker = Board(), Worker()
    worker.scoreboard.add(Cell.REQUESTS_HTTP1, 5)
    board.publish(worker)
    board.writer.retire(worker.scoreboard)
    assert read(board).total(Cell.REQUESTS_HTTP1) == 5


def test_totals_go_on_under_the_next_program():
    before, after, worker = Board(), Board(), Worker()
    worker.scoreboard.add(Cell.REQUESTS_HTTP2, 9)
    before.writer.retire(worker.scoreboard)
    after.writer.restore(before.writer.retired())
    after.publish()
    assert read(after).total(Cell.REQUESTS_HTTP2) == 9


def test_what_a_broken_worker_counts_fits_the_totals():
    """Found by fuzzing: the sums of two such workers were more than a cell takes."""
    before, after = Board(), Board()
    for _ in range(2):
        worker = Worker()
        worker.scoreboard.set(Cell.REQUESTS_HTTP1, (1 << 64) - 1)
        before.writer.retire(worker.scoreboard)
    before.publish()
    assert read(before).total(Cell.REQUESTS_HTTP1) == (1 << 64) - 2
    after.writer.restore(orjson.loads(orjson.dumps(before.writer.retired())))
    after.publish()


def test_workers_beyond_the_last_row_are_counted():
    board = Board(rows=2)
    board.publish(Worker(), Worker(), Worker())
    snapshot = read(board)
    assert len(snapshot.rows) == 2
    assert snapshot.get(MasterCell.ROWS_LEFT_OUT) == 1
    board.publish(Worker())
    assert read(board).get(MasterCell.ROWS_LEFT_OUT) == 0


def test_drops_are_told_by_reason():
    board = Board()
    board.publish(drops={DropReason.RING_FULL: 3})
    drops = read(board).drops()
    assert drops.pop("ring_full") == 3
    assert set(drops.values()) == {0}


def test_facts_that_do_not_fit_are_left_out_the_largest_first():
    board = Board()
    board.writer.set_facts({"small": "x", "large": "y" * 5000})
    board.publish()
    assert read(board).facts() == {"small": "x"}


def test_every_cell_is_a_counter_or_known_not_to_be_one():
    gauges = {cell for cell in Cell if cell not in COUNTERS}
    assert {cell.name for cell in gauges} == {
        *("MAGIC", "WORKER_ID", "PID", "STATE", "BEAT_NS", "BEAT_COUNT"),
        *("LAG_EWMA_US", "LAG_MAX_US", "REQUESTS_ACTIVE", "TCP_OPEN", "QUIC_OPEN"),
        *("QUIC_HALF_OPEN", "WEBSOCKETS_OPEN", "RSS_BYTES", "HTTP2_OPEN"),
        *("MAIN_BEAT_NS", "MAIN_BEAT_COUNT", "MAIN_LAG_EWMA_US", "MAIN_LAG_MAX_US"),
        "TELLS_STACKS",
    }
    assert max(Cell) < 128


def test_cells_of_a_row_have_room():
    assert 128 + max(AssignmentCell) < RowCell.SLOT
    assert max(RowCell) < 256
    assert max(MasterCell) < DROPS


@pytest.mark.linux
def test_nobody_but_the_master_can_write_the_board():
    memory = BoardMemory.create()
    watcher = BoardMemory.attach(os.dup(memory.fd))
    try:
        memory.buffer[0] = 7
        assert watcher.buffer[0] == 7
        assert watcher.buffer.readonly
        with pytest.raises(PermissionError):
            mmap.mmap(watcher.fd, PAGE_SIZE)
        with pytest.raises(PermissionError):
            os.write(watcher.fd, b"x")
    finally:
        watcher.close()
        memory.close()


def test_without_memfd_the_board_lives_in_a_file(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    memory = BoardMemory.create()
    watcher = BoardMemory.attach(os.dup(memory.fd))
    try:
        assert len(watcher.buffer) == board_size(segment.FILE_ROWS)
        writer = BoardWriter(memory.buffer)
        writer.begin()
        writer.publish({MasterCell.PID: 7})
        snapshot = BoardReader(watcher.buffer).read()
        assert snapshot is not None
        assert snapshot.get(MasterCell.PID) == 7
        writer.release()
    finally:
        watcher.close()
        memory.close()


WATCH = """
import sys
from asgiri.ipc.board import BoardReader
from asgiri.ipc.scoreboard import Cell
from asgiri.ipc.segment import BoardMemory
from tests.support.board import Board, Worker
reader = BoardReader(BoardMemory.attach(int(sys.argv[1])).buffer)
last, torn, whole = 0, 0, 0
while last < 2000:
    snapshot = reader.read()
    if snapshot is None:
        torn += 1
        continue
    whole += 1
    values = {row.get(Cell.REQUESTS_HTTP1) for row in snapshot.rows}
    assert len(values) == 1, values
    (value,) = values
    assert value >= last
    last = value
print(whole > 0)
"""


@pytest.mark.slow
def test_another_process_never_sees_half_a_publication():
    memory = BoardMemory.create()
    workers = [Worker(number) for number in range(1, 9)]
    writer = BoardWriter(memory.buffer)
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(memory.fd)], pass_fds=[memory.fd], stdout=subprocess.PIPE
    )
    count = 0
    while watcher.poll() is None:
        count += 1
        writer.begin()
        for worker in workers:
            worker.scoreboard.set(Cell.REQUESTS_HTTP1, count)
            writer.add_row(worker.scoreboard, worker.assignments, {})
        writer.publish({})
    assert watcher.stdout is not None
    assert (watcher.returncode, watcher.stdout.read()) == (0, b"True\n")
    watcher.stdout.close()
    writer.release()
    memory.close()

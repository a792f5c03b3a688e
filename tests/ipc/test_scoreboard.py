"""Pages of numbers: what the one process stores the other loads, and numbers keep their meaning."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiri.ipc.scoreboard import (
    DURATION_BOUNDS,
    MAGIC,
    PAGE_SIZE,
    REFUSALS,
    AssignmentCell,
    Assignments,
    Cell,
    Refusal,
    Scoreboard,
    WorkerState,
)
from asgiri.ipc.segment import Segment

U64 = st.integers(0, (1 << 64) - 1)
plain_cells = st.sampled_from([cell for cell in Cell if cell != Cell.DURATION_BUCKETS])


def boards() -> tuple[Scoreboard, Scoreboard]:
    """The worker's view of a page and the master's."""
    page = bytearray(PAGE_SIZE)
    return Scoreboard(memoryview(page)), Scoreboard(memoryview(page))


@settings(max_examples=40)
@given(st.dictionaries(plain_cells, U64))
def test_what_the_worker_stores_the_master_reads(values):
    worker, master = boards()
    for cell, value in values.items():
        worker.set(cell, value)
    assert all(master.get(cell) == value for cell, value in values.items())
    snapshot = master.snapshot()
    assert snapshot == {
        cell.name.lower(): values.get(cell, 0) for cell in Cell if cell != Cell.DURATION_BUCKETS
    }


def test_gauges_go_up_and_down_and_never_below_zero():
    worker, master = boards()
    worker.add(Cell.REQUESTS_ACTIVE)
    worker.add(Cell.REQUESTS_ACTIVE, 2)
    worker.add(Cell.REQUESTS_ACTIVE, -1)
    assert master.get(Cell.REQUESTS_ACTIVE) == 2
    with pytest.raises(ValueError):
        worker.add(Cell.TCP_OPEN, -1)


def test_a_row_is_valid_once_its_worker_has_claimed_it():
    worker, master = boards()
    assert not master.valid
    worker.claim(worker_id=7, pid=4711)
    assert master.valid
    assert (master.get(Cell.WORKER_ID), master.get(Cell.PID)) == (7, 4711)
    assert master.get(Cell.STATE) == WorkerState.SPAWNED


def test_a_row_of_another_layout_is_not_valid():
    worker, master = boards()
    worker.claim(7, 4711)
    worker.set(Cell.MAGIC, MAGIC + 1)
    assert not master.valid


def test_refusals_are_counted_by_reason():
    worker, master = boards()
    assert master.refusals() == {}
    worker.refuse(Refusal.HTTP1_BAD_REQUEST)
    worker.refuse(Refusal.WEBSOCKET_TOO_BIG, 3)
    assert master.refusals() == {"http1_bad_request": 1, "websocket_too_big": 3}


def test_durations_fall_into_the_bucket_whose_bound_they_do_not_exceed():
    worker, master = boards()
    for duration in (0, 100, 101, 120_000_000, 120_000_001, 10**12):
        worker.observe(duration)
    buckets = master.durations()
    assert len(buckets) == len(DURATION_BOUNDS) + 1 == 20
    assert (buckets[0], buckets[1], buckets[-2], buckets[-1], sum(buckets)) == (2, 1, 1, 2, 6)
    assert master.get(Cell.DURATION_SUM_US) == 201 + 240_000_001 + 10**12


def test_the_master_writes_what_it_has_sent():
    page = bytearray(PAGE_SIZE)
    master, worker = Assignments(memoryview(page)), Assignments(memoryview(page))
    master.claim(worker_id=7, generation=3)
    master.set(AssignmentCell.TARGET_STATE, WorkerState.READY)
    master.add(AssignmentCell.TCP_ASSIGNED, 5)
    assert worker.valid
    assert worker.snapshot() == {
        "magic": MAGIC,
        "worker_id": 7,
        "generation": 3,
        "target_state": WorkerState.READY,
        "tcp_assigned": 5,
        "quic_assigned": 0,
        "ring_drop_full": 0,
        "ring_drop_initial": 0,
        "taken_back": 0,
        "hand_back": 0,
        "waiting": 0,
    }


def test_a_writer_in_a_hurry_writes_the_same_cells():
    worker, master = boards()
    worker.cells[Cell.REQUESTS_ACTIVE] += 2
    assert worker.get(Cell.REQUESTS_ACTIVE) == master.get(Cell.REQUESTS_ACTIVE) == 2


def test_cells_do_not_overlap():
    buckets = range(Cell.DURATION_BUCKETS, Cell.DURATION_BUCKETS + len(DURATION_BOUNDS) + 1)
    single = [cell for cell in Cell if cell != Cell.DURATION_BUCKETS]
    assert not set(single) & set(buckets)
    assert max(*single, *buckets) < 128 < REFUSALS
    assert REFUSALS + max(Refusal) < PAGE_SIZE // 8
    assert tuple(sorted(set(DURATION_BOUNDS))) == DURATION_BOUNDS


def test_numbers_keep_their_meaning():
    # A master that took over reads the rows of workers that run the code before it: append only.
    assert [int(cell) for cell in Cell] == [*range(39), 40, *range(60, 71)]
    assert (Cell.BEAT_NS, Cell.TCP_CLOSED, Cell.QUIC_CLOSED, Cell.RSS_BYTES) == (4, 13, 16, 37)
    assert [int(cell) for cell in AssignmentCell] == list(range(11))
    assert (Refusal.HTTP1_BAD_REQUEST, Refusal.HTTP2_RESET_FLOOD) == (0, 48)
    assert [state.name for state in WorkerState][3:5] == ["READY", "DRAINING"]


def test_a_released_page_lets_its_memory_go():
    page = bytearray(PAGE_SIZE)
    board = Scoreboard(memoryview(page))
    with pytest.raises(BufferError):
        page.append(0)
    board.release()
    page.append(0)


ALTERNATE = """
import sys
from asgiri.ipc.scoreboard import Cell, Scoreboard
from asgiri.ipc.segment import Segment
board = Scoreboard(Segment.attach(int(sys.argv[1])).scoreboard)
while True:
    for _ in range(1000):
        board.set(Cell.BEAT_NS, 0x1111111111111111)
        board.set(Cell.BEAT_NS, 0xEEEEEEEEEEEEEEEE)
"""


@pytest.mark.slow
def test_a_cell_is_never_seen_half_written_by_another_process():
    segment = Segment.create(0)
    board = Scoreboard(segment.scoreboard)
    command = [sys.executable, "-c", ALTERNATE, str(segment.fd)]
    with subprocess.Popen(command, pass_fds=[segment.fd]) as writer:
        while board.get(Cell.BEAT_NS) == 0:
            assert writer.poll() is None
        seen = {board.get(Cell.BEAT_NS) for _ in range(1_000_000)}
        writer.kill()
    assert seen == {0x1111111111111111, 0xEEEEEEEEEEEEEEEE}
    board.release()
    segment.close()

"""The board in words: states of workers, totals, and what only the system knows."""

from __future__ import annotations

import orjson
import pytest

from asgiri.ipc.board import BoardSnapshot
from asgiri.ipc.scoreboard import Cell, Refusal, WorkerState
from asgiri.status import ProcessTable, read_board
from tests.support.board import Worker, status_of

LONG_AGO = 1


@pytest.mark.parametrize(
    ("state", "arguments"),
    [
        ("ready", {}),
        ("waiting", {"ready": False}),
        ("blocked", {"cells": {Cell.BEAT_NS: LONG_AGO}}),
        ("booting", {"cells": {Cell.STATE: WorkerState.IMPORTING}}),
        ("booting", {"cells": {Cell.STATE: WorkerState.SPAWNED, Cell.BEAT_NS: 0}}),
        ("draining", {"target": WorkerState.DRAINING}),
        ("draining", {"target": WorkerState.DRAINING, "cells": {Cell.BEAT_NS: LONG_AGO}}),
        ("leaving", {"target": WorkerState.DRAINED}),
        ("leaving", {"cells": {Cell.STATE: WorkerState.FAILED}}),
    ],
)
def test_the_state_of_a_worker_is_one_word(state, arguments):
    (worker,) = status_of(Worker(**arguments))["workers"]
    assert worker["state"] == state


def test_workers_are_listed_by_slot_the_newest_generation_first():
    rows = [Worker(slot=1), Worker(slot=0, generation=1), Worker(slot=0, generation=2)]
    listed = [(w["slot"], w["generation"]) for w in status_of(*rows)["workers"]]
    assert listed == [(0, 2), (0, 1), (1, 1)]


def test_connections_are_told_by_version():
    counted = {Cell.TCP_OPEN: 5, Cell.HTTP2_OPEN: 2, Cell.QUIC_OPEN: 3}
    (worker,) = status_of(Worker(cells=counted))["workers"]
    assert worker["connections"] == {"1": 3, "2": 2, "3": 3}


def test_totals_add_all_workers_up():
    one = Worker(cells={Cell.REQUESTS_HTTP1: 2, Cell.DURATION_BUCKETS + 3: 2})
    two = Worker(cells={Cell.REQUESTS_HTTP1: 3, Cell.DURATION_BUCKETS + 3: 3})
    one.scoreboard.refuse(Refusal.HTTP1_BAD_HOST)
    totals = status_of(one, two)["totals"]
    assert totals["requests"] == {"1": 5, "2": 0, "3": 0}
    assert totals["durations"]["counts"][3] == 5
    assert totals["refusals"] == {"http1_bad_host": 1}


def test_processor_time_and_memory_come_from_the_system():
    status = status_of(Worker())
    assert status["master"]["rss"] > 1 << 20
    assert status["workers"][0]["cpu_seconds"] > 0


def test_a_process_that_is_gone_has_no_numbers():
    assert ProcessTable().measure(0x7FFF_FFFF) == {"cpu_seconds": 0.0, "rss": 0}


def test_the_status_is_what_json_can_carry():
    status = status_of(Worker(), generation=3, reloads=2, target=4)
    assert orjson.loads(orjson.dumps(status)) == status
    assert (status["generation"], status["reload"]["done"]) == (3, 2)
    assert status["counts"]["wanted"] == 4
    assert status["asgiri"] == "1.2.3"


def test_a_master_that_died_while_it_wrote_is_not_waited_for():
    class Torn:
        def read(self) -> BoardSnapshot | None:
            return None

    pauses: list[float] = []
    assert read_board(Torn(), sleep=pauses.append) is None
    assert sum(pauses) < 1

"""The board of a real master's parts with tiny workers: while it is watched, and over their end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from asgiri.config import Config, RingConfig, WorkerConfig
from asgiri.ipc.board import BoardReader, BoardSnapshot, MasterCell, RowCell
from asgiri.ipc.scoreboard import AssignmentCell, Cell
from asgiri.ipc.segment import BoardMemory
from asgiri.master import reporting as module
from asgiri.master.actions import Action, GenerationBegun, Started
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.fleet import Fleet
from asgiri.master.loop import EventLoop
from asgiri.master.processes import WorkerHandle, WorkerOrder
from asgiri.master.reporting import Reporting
from asgiri.master.supervisor import Supervisor
from tests.support.crew import turn_until

pytestmark = pytest.mark.slow


class Scene:
    """A fleet of tiny workers, its board, and somebody who looks at it."""

    def __init__(self, count: int = 2) -> None:
        self.loop = EventLoop()
        self.started = False
        policy = WorkerConfig(count=count)
        self.supervisor = Supervisor(policy, first_worker_id=100, random=lambda: 0.5)
        dispatcher = Dispatcher(BalancePolicy.LEAST_LOADED, random=lambda: 0.5, hash_key=b"key")
        config = Config.from_values({"app": {"target": "app:app"}})
        self.fleet = Fleet(self.loop, self.supervisor, dispatcher, None, self.take, config)
        parts = (self.loop, self.supervisor, dispatcher, None, [], self.fleet)
        self.reporting = Reporting(*parts)
        self.parts = parts
        self.memory = BoardMemory.attach(os.dup(self.reporting.fileno()))
        self.reader = BoardReader(self.memory.buffer)

    def take(self, action: Action) -> None:
        if isinstance(action, GenerationBegun):
            order = WorkerOrder(
                config={"behaviour": "serve"},
                ring=RingConfig(),
                secrets=None,
                listeners=(),
                udp_fds=(),
                module="tests.support.tiny_worker",
            )
            self.fleet.order(action.generation, order)
        self.started = self.started or isinstance(action, Started)

    def start(self) -> list[WorkerHandle]:
        self.fleet.decide(self.supervisor.start(self.loop.now))
        turn_until(self.loop, lambda: self.started)
        return sorted(self.fleet.workers.values(), key=lambda worker: worker.slot)

    def read(self) -> BoardSnapshot:
        snapshot = self.reader.read()
        assert snapshot is not None
        return snapshot

    def close(self) -> None:
        self.fleet.abandon()
        self.fleet.acceptor.close()
        self.memory.close()
        self.reporting.close()
        self.loop.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def test_the_board_shows_each_worker(scene):
    workers = scene.start()
    scene.reporting.watch()
    snapshot = scene.read()
    shown = {row.get(RowCell.SLOT): row for row in snapshot.rows}
    assert sorted(shown) == [0, 1]
    for worker in workers:
        row = shown[worker.slot]
        assert row.get(Cell.PID) == worker.pid
        assert row.assigned(AssignmentCell.GENERATION) == 1
        assert row.get(RowCell.READY) == 1
    assert snapshot.get(MasterCell.PID) == os.getpid()
    assert snapshot.get(MasterCell.READY) == snapshot.get(MasterCell.TARGET) == 2
    assert snapshot.get(MasterCell.WORKERS_SPAWNED) == 2


def test_it_is_renewed_while_somebody_watches_and_only_then(scene, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    scene.start()
    assert scene.reader.read() is None
    scene.reporting.watch()
    scene.reporting.watch()
    first = scene.read().get(MasterCell.BEAT_NS)
    scene.reporting.unwatch()
    turn_until(scene.loop, lambda: scene.read().get(MasterCell.BEAT_NS) > first)
    scene.reporting.unwatch()
    last = scene.read().get(MasterCell.BEAT_NS)
    for _ in range(3):
        scene.loop.turn(0.02)
    assert scene.read().get(MasterCell.BEAT_NS) == last


def test_what_a_worker_has_counted_outlives_it(scene):
    doomed, _ = scene.start()
    scene.reporting.watch()
    # In the name of the worker, which never touches this cell.
    doomed.scoreboard.add(Cell.REQUESTS_HTTP1, 7)
    doomed.signal(signal.SIGKILL)
    turn_until(scene.loop, lambda: doomed.worker_id not in scene.fleet.workers)
    scene.reporting.publish()
    snapshot = scene.read()
    assert snapshot.total(Cell.REQUESTS_HTTP1) == 7
    assert snapshot.retired.get(Cell.REQUESTS_HTTP1) == 7
    assert snapshot.get(MasterCell.WORKERS_CRASHED) == 1
    assert snapshot.get(MasterCell.READY) == 1


def test_the_next_program_goes_on_counting(scene):
    doomed, _ = scene.start()
    doomed.scoreboard.add(Cell.REQUESTS_HTTP1, 7)
    doomed.signal(signal.SIGKILL)
    turn_until(scene.loop, lambda: doomed.worker_id not in scene.fleet.workers)
    scene.reporting.more = lambda: {MasterCell.CONTROL_REQUESTS: 3}
    state = json.loads(json.dumps(scene.reporting.to_state()))
    after = Reporting(*scene.parts)
    try:
        after.resume(state)
        after.more = lambda: {MasterCell.CONTROL_REQUESTS: 2}
        again = json.loads(json.dumps(after.to_state()))
        assert again["before"][str(int(MasterCell.CONTROL_REQUESTS))] == 5
        assert again["retired"] == state["retired"]
        assert again["started_ns"] == state["started_ns"]
        assert (state["upgrades"], again["upgrades"]) == (0, 1)
    finally:
        after.close()

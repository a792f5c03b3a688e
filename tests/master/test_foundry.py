"""Molds and the workers that they fork, with tiny real ones, and what becomes of both."""

from __future__ import annotations

import ctypes
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from asgiri import prctl
from asgiri.config import Config, RingConfig, WorkerConfig
from asgiri.ipc import segment
from asgiri.ipc.messages import ReopenLogs
from asgiri.ipc.scoreboard import Cell
from asgiri.master.actions import Action, GenerationBegun, ReloadEnded, Started, Stopped
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.fleet import Fleet
from asgiri.master.loop import EventLoop
from asgiri.master.processes import WorkerHandle, WorkerOrder
from asgiri.master.supervisor import Supervisor
from tests.support.crew import turn_until
from tests.support.descriptors import memory_files, open_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.linux,
    pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_CHILD_SUBREAPER"),
]


class Scene:
    """A fleet whose workers are forked. `molds` says how the mold of each generation behaves."""

    def __init__(self, *molds: str, count: int = 2, behaviour: str = "serve", **policy) -> None:
        self.molds = list(molds) or ["good"]
        self.behaviour = behaviour
        self.policy = WorkerConfig(count=count, graceful_timeout=5.0, **policy)
        self.loop = EventLoop()
        self.outcomes: list[Action] = []
        self.supervisor = Supervisor(self.policy, first_worker_id=100, random=lambda: 0.5)
        dispatcher = Dispatcher(BalancePolicy.LEAST_LOADED, random=lambda: 0.5, hash_key=b"key")
        config = Config.from_values({"app": {"target": "app:app"}})
        self.fleet = Fleet(self.loop, self.supervisor, dispatcher, None, self.take, config)

    def take(self, action: Action) -> None:
        self.outcomes.append(action)
        if isinstance(action, GenerationBegun):
            self.order(action.generation)

    def order(self, generation: int) -> None:
        mold = self.molds[min(generation, len(self.molds)) - 1]
        order = WorkerOrder(
            config={"mold": mold, "behaviour": self.behaviour},
            ring=RingConfig(),
            secrets=None,
            listeners=(),
            udp_fds=(),
            module="no_such_module",
            mold="tests.support.tiny_mold" if mold != "missing" else "no_such_module",
        )
        self.fleet.order(generation, order)

    def start(self) -> None:
        self.fleet.decide(self.supervisor.start(self.loop.now))

    def reload(self) -> None:
        self.fleet.decide(self.supervisor.reload(self.policy, self.loop.now))

    def run_until_started(self) -> list[WorkerHandle]:
        self.start()
        self.wait(Started)
        return self.workers

    def wait(self, kind: type[Action]) -> Action:
        turn_until(self.loop, lambda: self.found(kind))
        return self.found(kind)[0]

    def found(self, kind: type[Action]) -> list[Action]:
        return [action for action in self.outcomes if isinstance(action, kind)]

    def wait_workers(self, *pids_to_be_gone: int) -> list[WorkerHandle]:
        """Wait until the slots are full again, without these processes."""

        def full() -> bool:
            ready = [w for w in self.workers if w.scoreboard.get(Cell.BEAT_NS) > 0]
            gone = not {w.pid for w in self.workers} & set(pids_to_be_gone)
            return len(ready) == self.policy.count and gone

        turn_until(self.loop, full)
        return self.workers

    @property
    def workers(self) -> list[WorkerHandle]:
        return sorted(self.fleet.workers.values(), key=lambda worker: worker.slot)

    @property
    def mold_pids(self) -> dict[int, int]:
        return self.fleet._foundry.processes

    def wait_mold(self, generation: int) -> int:
        turn_until(self.loop, lambda: generation in self.mold_pids)
        return self.mold_pids[generation]

    def close(self) -> None:
        self.fleet.abandon()
        self.fleet.acceptor.close()
        self.loop.close()


@pytest.fixture
def make_scene() -> Iterator[type[Scene]]:
    """Scenes in a process that is a subreaper, as the master is."""
    assert prctl.become_subreaper()
    descriptors = set(os.listdir("/dev/fd"))
    scenes: list[Scene] = []

    def make(*molds: str, **options) -> Scene:
        scenes.append(Scene(*molds, **options))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.close()
    ctypes.CDLL(None).prctl(prctl.PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(0))
    gc.collect()
    assert set(os.listdir("/dev/fd")) == descriptors


def log_lines(caplog, level: int = logging.DEBUG) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_workers_are_forked_by_one_mold_and_are_children_of_the_master(make_scene, caplog):
    caplog.set_level(logging.INFO, logger="asgiri.master")
    scene = make_scene(count=3)
    workers = scene.run_until_started()
    assert [worker.slot for worker in workers] == [0, 1, 2]
    assert [parent(worker.pid) for worker in workers] == [os.getpid()] * 3
    mold = scene.mold_pids[1]
    assert log_lines(caplog)[0] == f"mold pid={mold} gen=1: ready"
    assert f"mold pid={mold} gen=1: left some things behind" in log_lines(caplog, logging.WARNING)
    scene.fleet.decide(scene.supervisor.stop(scene.loop.now))
    assert scene.wait(Stopped) == Stopped(0)


def test_a_worker_has_its_own_channels_and_nobody_elses(make_scene):
    scene = make_scene(count=3)
    for worker in scene.run_until_started():
        targets = [file.target for file in open_files(worker.pid)]
        # Its two channels; no end of the mold's, of the master's or of another worker's.
        assert sum(target.startswith("socket:") for target in targets) == 2, targets
        assert len(memory_files(worker.pid)) == 1
        assert not any(target.startswith("pipe:") for target in targets[3:])


def test_a_killed_worker_is_forked_again_and_its_status_told(make_scene, caplog):
    scene = make_scene()
    victim, other = scene.run_until_started()
    os.kill(victim.pid, signal.SIGKILL)
    workers = scene.wait_workers(victim.pid)
    assert workers[1] is other
    assert parent(workers[0].pid) == os.getpid()
    assert any("was killed by SIGKILL; the next one" in line for line in log_lines(caplog))
    assert list(scene.mold_pids) == [1]


def test_a_killed_mold_is_missed_only_by_the_next_worker(make_scene, caplog):
    scene = make_scene()
    victim, other = scene.run_until_started()
    mold = scene.mold_pids[1]
    os.kill(mold, signal.SIGKILL)
    turn_until(scene.loop, lambda: not scene.mold_pids)
    expected = f"mold pid={mold} gen=1: was killed by SIGKILL; the next worker starts another one"
    assert expected in log_lines(caplog, logging.WARNING)
    assert [worker.reap() for worker in scene.workers] == [None, None]
    os.kill(victim.pid, signal.SIGKILL)
    assert scene.wait_workers(victim.pid)[1] is other
    assert scene.mold_pids[1] != mold


def test_a_reload_has_a_mold_of_its_own_and_ends_the_old_one(make_scene):
    scene = make_scene()
    scene.run_until_started()
    first = scene.mold_pids[1]
    scene.reload()
    scene.wait(ReloadEnded)
    turn_until(scene.loop, lambda: list(scene.mold_pids) == [2])
    assert scene.mold_pids[2] != first
    turn_until(scene.loop, lambda: {w.generation for w in scene.workers} == {2})


FAILURES = {
    "fail": "worker[0] failed (import): no module named nothing",
    "exit": "worker[0] exited with status 5 before it was ready",
    "missing": "worker[0] exited with status 1 before it was ready",
    "lie": "worker[0] cannot be started: process 1 is no child of the master",
}


@pytest.mark.parametrize("mold", FAILURES)
def test_a_mold_that_fails_in_a_reload_leaves_the_old_generation_alone(make_scene, mold, caplog):
    scene = make_scene("good", mold, "good")
    before = scene.run_until_started()
    scene.reload()
    assert scene.wait(ReloadEnded) == ReloadEnded(2, FAILURES[mold])
    turn_until(scene.loop, lambda: list(scene.mold_pids) == [1])
    assert scene.workers == before
    told = [line for line in log_lines(caplog) if line.endswith("Traceback: nothing")]
    assert len(told) == (1 if mold == "fail" else 0)
    # Who dies now is forked by the mold that has stayed.
    os.kill(before[0].pid, signal.SIGKILL)
    scene.wait_workers(before[0].pid)
    scene.reload()
    turn_until(scene.loop, lambda: ReloadEnded(3, "") in scene.outcomes)


@pytest.mark.parametrize(("mold", "status"), [("fail", 3), ("exit", 3)])
def test_a_mold_that_fails_at_the_start_ends_the_server(make_scene, mold, status, caplog):
    scene = make_scene(mold, count=3)
    scene.start()
    assert scene.wait(Stopped) == Stopped(status)
    errors = log_lines(caplog, logging.ERROR)
    assert errors[0].startswith("worker[0] gen=1: ")
    assert errors[0].endswith("; the server does not start")
    assert len(errors) == (2 if mold == "fail" else 1)


def test_a_mold_that_hangs_is_aborted(make_scene):
    scene = make_scene("good", "hang", count=1)
    scene.run_until_started()
    scene.policy = replace(scene.policy, boot_timeout=0.5)
    scene.reload()
    failure = "worker[0] not ready after 0.5 s; aborted"
    assert scene.wait(ReloadEnded) == ReloadEnded(2, failure)
    turn_until(scene.loop, lambda: list(scene.mold_pids) == [1])
    assert len(scene.workers) == 1
    assert not scene.fleet.unborn


def test_a_mold_that_does_not_answer_is_killed(make_scene):
    scene = make_scene("deaf", count=1, boot_timeout=1.0)
    scene.start()
    assert scene.wait(Stopped) == Stopped(3)
    assert not scene.mold_pids


def test_workers_that_are_given_up_before_they_are_born_leave_nothing(make_scene):
    scene = make_scene("good", "hang")
    scene.run_until_started()
    scene.reload()
    scene.wait_mold(2)
    assert len(scene.fleet.unborn) == 1
    scene.fleet.decide(scene.supervisor.stop(scene.loop.now))
    assert scene.wait(Stopped) == Stopped(0)
    assert scene.fleet.unborn == ()


def test_a_second_stop_does_not_wait_for_an_import(make_scene):
    scene = make_scene("hang")
    scene.start()
    for _ in range(2):
        scene.fleet.decide(scene.supervisor.stop(scene.loop.now))
    assert scene.wait(Stopped) == Stopped(0)


def refuse(*arguments, **options):
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_worker_that_cannot_be_given_its_channels_is_tried_again(make_scene, monkeypatch, caplog):
    scene = make_scene(count=1)
    (victim,) = scene.run_until_started()
    with monkeypatch.context() as patch:
        patch.setattr(segment.os, "memfd_create", refuse)
        os.kill(victim.pid, signal.SIGKILL)
        failed = "cannot be started: [Errno 24] Too many open files; the next one starts in 0.2 s"
        turn_until(scene.loop, lambda: any(failed in line for line in log_lines(caplog)))
    scene.wait_workers(victim.pid)


def test_a_mold_that_cannot_be_started_is_tried_again(make_scene, monkeypatch, caplog):
    scene = make_scene(count=1)
    (victim,) = scene.run_until_started()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nonexistent")
        os.kill(scene.mold_pids[1], signal.SIGKILL)
        turn_until(scene.loop, lambda: not scene.mold_pids)
        os.kill(victim.pid, signal.SIGKILL)
        failed = "cannot be started: [Errno 2] No such file or directory"
        turn_until(scene.loop, lambda: any(failed in line for line in log_lines(caplog)))
    scene.wait_workers(victim.pid)


def test_molds_that_were_let_go_are_reaped_and_replaced_if_the_master_stays(make_scene):
    """A takeover that fails: they were killed before the program was exchanged."""
    scene = make_scene(count=1)
    (victim,) = scene.run_until_started()
    scene.fleet.end_molds()
    turn_until(scene.loop, lambda: not scene.mold_pids)
    os.kill(victim.pid, signal.SIGKILL)
    scene.wait_workers(victim.pid)


def test_without_pidfds_ends_are_found_by_asking(make_scene, monkeypatch):
    monkeypatch.setattr(os, "pidfd_open", refuse)
    scene = make_scene(count=1)
    (victim,) = scene.run_until_started()
    os.kill(scene.mold_pids[1], signal.SIGKILL)
    os.kill(victim.pid, signal.SIGKILL)

    def gone() -> bool:
        scene.fleet.reap()  # as SIGCHLD has it
        return not scene.mold_pids and victim not in scene.workers

    turn_until(scene.loop, gone)
    scene.wait_workers(victim.pid)


def test_who_is_told_to_quit_while_being_forked_quits(make_scene):
    scene = make_scene(count=1)
    scene.start()
    turn_until(scene.loop, lambda: scene.fleet._foundry.is_forking)
    scene.fleet.decide(scene.supervisor.stop(scene.loop.now))
    assert scene.wait(Stopped) == Stopped(0)


def test_what_is_no_message_is_passed_over(make_scene):
    scene = make_scene("loud")
    assert len(scene.run_until_started()) == 2


def test_molds_hear_of_moved_log_files(make_scene):
    scene = make_scene()
    scene.run_until_started()
    scene.fleet.broadcast(ReopenLogs())
    os.kill(scene.workers[0].pid, signal.SIGKILL)
    scene.wait_workers(scene.workers[0].pid)  # the mold goes on


def test_a_stranger_that_is_left_to_the_master_is_reaped(make_scene):
    scene = make_scene(count=1)
    scene.run_until_started()
    between = os.fork()
    if not between:
        if os.fork():
            os._exit(0)
        os._exit(7)
    os.waitpid(between, 0)
    while is_somebody_dead():
        scene.fleet.reap()
    assert len(scene.wait_workers()) == 1


def is_somebody_dead() -> bool:
    return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

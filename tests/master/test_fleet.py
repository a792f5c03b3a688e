"""What the supervisor decides, carried out on tiny real workers, and what becomes of them."""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import psutil
import pytest

from asgiri.config import Config, RingConfig, WorkerConfig
from asgiri.ipc.messages import ReopenLogs, SetLogLevel
from asgiri.ipc.scoreboard import AssignmentCell
from asgiri.master import fleet as fleet_module
from asgiri.master.actions import (
    Action,
    GenerationBegun,
    ReloadEnded,
    Started,
    StopListening,
    Stopped,
)
from asgiri.master.binding import bind_port
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.fleet import Fleet
from asgiri.master.loop import EventLoop
from asgiri.master.processes import WorkerHandle, WorkerOrder
from asgiri.master.supervisor import Supervisor
from tests.support.crew import PATIENCE, turn_until

pytestmark = pytest.mark.slow


class Scene:
    """A fleet and what it needs. `behaviours` says what the workers of each generation do."""

    def __init__(self, *behaviours: str, count: int = 2, **policy) -> None:
        self.behaviours = behaviours or ("serve",)
        self.policy = WorkerConfig(count=count, graceful_timeout=5.0, **policy)
        self.loop = EventLoop()
        self.outcomes: list[Action] = []
        self.supervisor = Supervisor(self.policy, first_worker_id=100, random=lambda: 0.5)
        self.dispatcher = Dispatcher(
            BalancePolicy.LEAST_LOADED, random=lambda: 0.5, hash_key=b"key"
        )
        config = Config.from_values({"app": {"target": "app:app"}})
        self.fleet = Fleet(self.loop, self.supervisor, self.dispatcher, None, self.take, config)
        self.listener = bind_port("127.0.0.1", 0, ("tcp",), 4096)[0]
        self.listener.index = 0
        self.clients: list[socket.socket] = []

    def take(self, action: Action) -> None:
        self.outcomes.append(action)
        match action:
            case GenerationBegun(generation=generation):
                behaviour = self.behaviours[min(generation, len(self.behaviours)) - 1]
                self.fleet.order(
                    generation,
                    WorkerOrder(
                        config={"behaviour": behaviour},
                        ring=RingConfig(),
                        secrets=None,
                        listeners=(),
                        udp_fds=(),
                        module="tests.support.tiny_worker",
                    ),
                )
            case Started():
                self.fleet.acceptor.start([self.listener])
            case StopListening():
                self.fleet.acceptor.stop()
                self.listener.close()

    def start(self) -> None:
        self.fleet.decide(self.supervisor.start(self.loop.now))

    def run_until_started(self) -> list[WorkerHandle]:
        self.start()
        self.wait(Started)
        return self.workers

    def wait(self, kind: type[Action]) -> Action:
        found: list[Action] = []

        def came() -> bool:
            found[:] = [action for action in self.outcomes if isinstance(action, kind)]
            return bool(found)

        turn_until(self.loop, came)
        return found[0]

    def wait_workers(self, *pids_to_be_gone: int) -> list[WorkerHandle]:
        """Wait until the slots are full again, without these processes."""

        def full() -> bool:
            workers = self.workers
            ready = [w for w in workers if w.scoreboard.get(5) > 0]  # it beats
            return len(ready) == self.policy.count and not (
                {w.pid for w in workers} & set(pids_to_be_gone)
            )

        turn_until(self.loop, full)
        return self.workers

    @property
    def workers(self) -> list[WorkerHandle]:
        return sorted(self.fleet.workers.values(), key=lambda worker: worker.slot)

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listener.socket.getsockname(), timeout=PATIENCE)
        self.clients.append(client)
        return client

    def answer(self, client: socket.socket) -> tuple[int, int]:
        """(slot, worker_id) of who answered."""
        turn_until(self.loop, lambda: select.select([client], [], [], 0)[0])
        line = client.recv(100)
        assert line, "closed without an answer"
        slot, worker_id, _ = map(int, line.split())
        return slot, worker_id

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.fleet.abandon()
        self.fleet.acceptor.close()
        self.listener.close()
        self.loop.close()


def child_processes() -> set[int]:
    """Zombies among them."""
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture
def make_scene() -> Iterator[type[Scene]]:
    descriptors = set(os.listdir("/dev/fd"))
    children = child_processes()
    scenes: list[Scene] = []

    def make(*behaviours: str, **options) -> Scene:
        scenes.append(Scene(*behaviours, **options))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.close()
    gc.collect()
    assert set(os.listdir("/dev/fd")) == descriptors
    # No zombies either. Other tests' servers may live for the whole session: theirs are not ours.
    assert child_processes() <= children


def log_lines(caplog, level: int = logging.DEBUG) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def test_first_generation_starts_serves_and_stops(make_scene, caplog):
    caplog.set_level(logging.INFO, logger="asgiri.master")
    scene = make_scene()
    workers = scene.run_until_started()
    pids = [worker.pid for worker in workers]
    assert {scene.answer(scene.connect())[0] for _ in range(10)} == {0, 1}
    lines = log_lines(caplog)
    assert sorted(line for line in lines if line.endswith("ready")) == [
        f"worker[{slot}] pid={pid} gen=1: ready" for slot, pid in enumerate(pids)
    ]
    scene.fleet.decide(scene.supervisor.stop(scene.loop.now))
    assert scene.wait(Stopped) == Stopped(0)
    assert scene.workers == []


def test_killed_worker_is_replaced_and_its_unread_connections_served(make_scene, caplog):
    caplog.set_level(logging.INFO, logger="asgiri.master")
    scene = make_scene(count=1)
    (doomed,) = scene.run_until_started()
    pid = doomed.pid
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    clients = [scene.connect() for _ in range(20)]
    turn_until(scene.loop, lambda: scene.fleet.acceptor.statistics().handed_off == 20)
    os.kill(pid, signal.SIGKILL)
    (successor,) = scene.wait_workers(pid)
    assert {scene.answer(client) for client in clients} == {(0, successor.worker_id)}
    assert f"worker[0] pid={pid} gen=1: 20 connections it had not read go to others" in (
        log_lines(caplog)
    )
    errors = log_lines(caplog, logging.ERROR)
    assert len(errors) == 1
    assert errors[0].startswith(f"worker[0] pid={pid} gen=1: was killed by SIGKILL; ")


def test_a_reload_while_all_workers_wait_for_their_respawn_forgets_nobody(make_scene):
    """They are started again with what their generation was ordered, not with the new one's."""
    scene = make_scene("serve", "silent", count=1, boot_timeout=60.0)
    (first,) = scene.run_until_started()
    os.kill(first.pid, signal.SIGKILL)
    turn_until(scene.loop, lambda: not scene.fleet.workers)  # in back-off
    scene.fleet.decide(scene.supervisor.reload(scene.policy, scene.loop.now))
    turn_until(scene.loop, lambda: {w.generation for w in scene.workers} == {1, 2})


def test_connections_are_taken_back_from_a_stopped_worker_by_itself(make_scene):
    scene = make_scene()
    stopped, other = scene.run_until_started()
    os.kill(stopped.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
    clients = [scene.connect() for _ in range(20)]
    assert {scene.answer(client)[1] for client in clients} == {other.worker_id}
    os.kill(stopped.pid, signal.SIGCONT)


def test_first_generation_that_fails_ends_everything_with_its_reason(make_scene, caplog):
    scene = make_scene("fail")
    scene.start()
    assert scene.wait(Stopped) == Stopped(3)
    lines = log_lines(caplog, logging.ERROR)
    # Said by the first one for all of them: one line, then where it happened.
    assert [line.partition(": ")[2] for line in lines] == [
        "failed (import): no module named nothing; the server does not start",
        "where it failed:\nTraceback: nothing",
    ]
    assert scene.workers == []


def test_first_generation_that_exits_silently_ends_everything(make_scene, caplog):
    scene = make_scene("exit", count=3)
    scene.start()
    assert scene.wait(Stopped) == Stopped(3)
    assert any("exited with status 5 before it was ready" in line for line in log_lines(caplog))


def test_a_worker_that_cannot_be_started_ends_the_start(make_scene, monkeypatch, caplog):
    scene = make_scene()

    def fail(*arguments, **options):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(fleet_module, "spawn", fail)
    scene.start()
    assert isinstance(scene.wait(Stopped), Stopped)
    assert any("cannot be started: " in line for line in log_lines(caplog))
    assert scene.workers == []


def test_a_worker_that_cannot_be_started_later_is_tried_again(make_scene, monkeypatch):
    scene = make_scene(count=1)
    (first,) = scene.run_until_started()
    pid = first.pid
    original = fleet_module.spawn
    calls = []

    def fail_once(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(11, "Resource temporarily unavailable")
        return original(*arguments, **options)

    monkeypatch.setattr(fleet_module, "spawn", fail_once)
    os.kill(pid, signal.SIGKILL)
    scene.wait_workers(pid)
    assert len(calls) == 2


def test_reload_switches_to_the_new_generation_and_the_old_drains(make_scene):
    scene = make_scene()
    old = [worker.pid for worker in scene.run_until_started()]
    scene.fleet.decide(scene.supervisor.reload(scene.policy, scene.loop.now))
    assert scene.wait(ReloadEnded) == ReloadEnded(2, "")
    new = scene.wait_workers(*old)
    assert [worker.generation for worker in new] == [2, 2]
    assert scene.answer(scene.connect())[1] in {worker.worker_id for worker in new}


@pytest.mark.parametrize("behaviour", ["fail", "exit"])
def test_reload_that_fails_leaves_the_old_generation_untouched(make_scene, behaviour, caplog):
    scene = make_scene("serve", behaviour)
    old = [worker.pid for worker in scene.run_until_started()]
    scene.fleet.decide(scene.supervisor.reload(scene.policy, scene.loop.now))
    ended = scene.wait(ReloadEnded)
    assert isinstance(ended, ReloadEnded)
    assert ended.failure
    turn_until(scene.loop, lambda: len(scene.workers) == 2)
    assert [worker.pid for worker in scene.workers] == old
    assert len({scene.answer(scene.connect())[1] for _ in range(4)}) == 2


def test_options_that_are_the_masters_change(make_scene):
    scene = make_scene(count=2)
    scene.run_until_started()
    dispatcher = scene.dispatcher

    def configure(**sections) -> None:
        scene.fleet.configure(Config.from_values({"app": {"target": "app:app"}, **sections}))

    def balances() -> bool:
        [wanted] = {worker.assignments.get(AssignmentCell.HAND_BACK) for worker in scene.workers}
        return bool(wanted)

    assert not balances()
    configure(http={"limit_concurrency": 1})
    assert dispatcher.request_limit == 1
    assert balances()  # a limit means that requests are long
    configure(workers={"balance_policy": "client-ip", "balance": "request"})
    assert dispatcher.request_limit == 0
    assert balances()
    slots = set()
    for _ in range(10):
        client = scene.connect()
        client.send(b"a request")
        slots.add(scene.answer(client)[0])
    assert len(slots) == 1  # all come from one address
    configure(workers={"balance": "connection"})
    assert not balances()
    slots = {scene.answer(scene.connect())[0] for _ in range(10)}
    assert len(slots) == 2


def test_scaling_starts_and_drains_workers(make_scene):
    scene = make_scene(count=1)
    scene.run_until_started()
    scene.fleet.decide(scene.supervisor.scale(1, scene.loop.now))
    turn_until(scene.loop, lambda: len(scene.workers) == 2)
    turn_until(scene.loop, lambda: scene.workers[1].scoreboard.get(5) > 0)
    turn_until(scene.loop, lambda: {scene.answer(scene.connect())[0] for _ in range(6)} == {0, 1})
    scene.fleet.decide(scene.supervisor.scale(-1, scene.loop.now))
    turn_until(scene.loop, lambda: len(scene.workers) == 1)
    assert scene.workers[0].slot == 0


def test_a_hanging_first_worker_is_killed_at_the_boot_timeout(make_scene):
    scene = make_scene("silent", count=1, boot_timeout=0.2)
    scene.start()
    assert scene.wait(Stopped) == Stopped(3)


def test_a_worker_that_closes_its_control_channel_is_killed(make_scene, monkeypatch, caplog):
    monkeypatch.setattr(fleet_module, "CONTROL_LOST_GRACE", 0.05)
    scene = make_scene("close", count=1)
    scene.start()
    assert scene.wait(Stopped) == Stopped(3)
    assert any("closed its control channel and lives on" in line for line in log_lines(caplog))


def test_a_worker_that_reads_no_messages_is_killed(make_scene, caplog):
    scene = make_scene(count=1)
    (worker,) = scene.run_until_started()
    pid = worker.pid
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    for _ in range(5000):
        scene.fleet.broadcast(SetLogLevel("x" * 1000))
    assert any("reads no messages; killed" in line for line in log_lines(caplog))
    scene.wait_workers(pid)


def test_messages_that_do_not_fit_at_once_are_sent_when_it_reads_again(make_scene):
    scene = make_scene(count=1)
    (worker,) = scene.run_until_started()
    os.kill(worker.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)
    while not worker.unsent:
        scene.fleet.broadcast(SetLogLevel("x" * 1000))
    scene.fleet.broadcast(ReopenLogs())
    os.kill(worker.pid, signal.SIGCONT)
    turn_until(scene.loop, lambda: worker.unsent == 0)
    scene.loop.turn(0)
    assert scene.loop.is_watched(worker.control.fileno())
    scene.fleet.decide(scene.supervisor.stop(scene.loop.now))
    assert scene.wait(Stopped) == Stopped(0)


def test_rubbish_and_warnings_of_a_worker(make_scene, caplog):
    scene = make_scene("rubbish", count=1)
    (worker,) = scene.run_until_started()
    assert any("that was rubbish" in line for line in log_lines(caplog))
    assert worker.rubbish == 6


def test_without_pidfds_sigchld_does(make_scene, monkeypatch):
    def refused(pid: int, flags: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refused, raising=False)
    scene = make_scene(count=1)
    (worker,) = scene.run_until_started()
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    scene.fleet.reap()  # what SIGCHLD leads to
    turn_until(scene.loop, lambda: len(scene.workers) == 1 and scene.workers[0].pid != pid)
    turn_until(scene.loop, lambda: scene.workers[0].scoreboard.get(5) > 0)
    scene.fleet.decide(scene.supervisor.stop(scene.loop.now))

    def stopped() -> bool:
        scene.fleet.reap()
        return any(isinstance(action, Stopped) for action in scene.outcomes)

    turn_until(scene.loop, stopped)


def test_a_hung_worker_is_aborted_and_replaced(make_scene, caplog):
    scene = make_scene(count=1, timeout=0.5)
    (worker,) = scene.run_until_started()
    pid = worker.pid
    os.kill(pid, signal.SIGSTOP)
    (successor,) = scene.wait_workers(pid)
    assert successor.slot == 0
    assert any("stands still for" in line for line in log_lines(caplog))


def can_unshare() -> bool:
    command = ["unshare", "-p", "-f", "--mount-proc", "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_unshare(), reason="takes unshare(1) and the right to use it")
def test_as_pid_1_orphans_are_reaped_and_workers_not_lost():
    code = """
    import os, signal, subprocess, sys
    sys.path.insert(0, ".")
    from tests.master.test_fleet import Scene
    from tests.support.crew import turn_until
    assert os.getpid() == 1
    scene = Scene(count=1)
    (worker,) = scene.run_until_started()
    # Orphans: a child that leaves a grandchild behind.
    for _ in range(3):
        subprocess.run(["sh", "-c", "sleep 0.05 & exit 0"])
    def states():
        states = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                states.append(open(f"/proc/{name}/stat").read().rsplit(")", 1)[1].split()[0])
            except OSError:
                pass
        return states
    def clean():
        scene.fleet.reap()
        return len(states()) == 2 and "Z" not in states()
    turn_until(scene.loop, clean)
    # A dead worker must not hide the orphans behind it.
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    subprocess.run(["sh", "-c", "sleep 0.05 & exit 0"])
    while states().count("Z") < 2:
        os.sched_yield()
    scene.fleet.reap()
    turn_until(scene.loop, lambda: clean() and scene.workers[0].pid != pid)
    scene.close()
    print("fine")
    """
    done = subprocess.run(
        ["unshare", "-p", "-f", "--mount-proc", sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "fine\n", done.stderr

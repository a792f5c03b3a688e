"""Accepting and handing off: real sockets, tiny real workers, the real dispatcher."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from asgiri.ipc.channel import largest_batch
from asgiri.ipc.scoreboard import AssignmentCell
from asgiri.master.acceptor import (
    ACCEPTS_PER_TURN,
    FILES_SHARE,
    QUEUE_SIZE,
    Acceptor,
    client_ip,
)
from asgiri.master.binding import Listener, UnixAccess, bind_port, bind_unix
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.loop import EventLoop
from asgiri.master.processes import WorkerHandle
from tests.support.crew import PATIENCE, Crew, turn_until


class Stubborn(Dispatcher):
    """Sends everything to one worker, as if it had no limit of its own and were never late."""

    def __init__(self) -> None:
        super().__init__(BalancePolicy.LEAST_LOADED, random=lambda: 0.5, hash_key=b"key")
        self.chosen = 0

    def choose_tcp(self, now: float, client_ip: str = "") -> int:
        return self.chosen


class Scene:
    """An acceptor with everything around it."""

    def __init__(self, loop: EventLoop, crew: Crew) -> None:
        self.loop = loop
        self.crew = crew
        self.dispatcher = Dispatcher(
            BalancePolicy.LEAST_LOADED, random=lambda: 0.5, hash_key=b"key"
        )
        self.acceptor = Acceptor(loop, self.dispatcher, crew.workers, keep_alive=5.0)
        self.listeners: list[Listener] = []
        self.clients: list[socket.socket] = []

    def listen(self) -> Listener:
        listener = bind_port("127.0.0.1", 0, ("tcp",), 4096)[0]
        listener.index = len(self.listeners)
        self.listeners.append(listener)
        return listener

    def hire(self, count: int = 1, behaviour: str = "serve") -> list[WorkerHandle]:
        workers = [self.crew.start(behaviour) for _ in range(count)]
        for worker in workers:
            self.dispatcher.add_worker(worker.worker_id, worker.slot, worker.scoreboard)
        self.dispatcher.set_ready(list(self.crew.workers))
        return workers

    def dismiss(self, worker: WorkerHandle) -> None:
        """What the fleet does when a worker has exited."""
        self.dispatcher.remove_worker(worker.worker_id)
        del self.crew.workers[worker.worker_id]

    def connect(self, count: int = 1, listener: Listener | None = None) -> list[socket.socket]:
        address = (listener or self.listeners[0]).socket.getsockname()
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        clients = []
        for _ in range(count):
            client = socket.socket(family)
            client.settimeout(PATIENCE)
            client.connect(address)
            clients.append(client)
        self.clients += clients
        return clients

    def answers(self, clients: list[socket.socket]) -> list[tuple[int, int, int]]:
        """(slot, worker_id, listener) as each client's worker says; the loop turns meanwhile."""
        found = []
        for client in clients:
            client.setblocking(False)
            line = b""

            def complete(client: socket.socket = client) -> bool:
                nonlocal line
                try:
                    part = client.recv(100)
                except BlockingIOError:
                    return False
                assert part, "closed without an answer"
                line += part
                return line.endswith(b"\n")

            turn_until(self.loop, complete)
            slot, worker_id, listener = map(int, line.split())
            found.append((slot, worker_id, listener))
        return found

    def statistics(self):
        return self.acceptor.statistics()


@pytest.fixture
def scene(loop, crew) -> Iterator[Scene]:
    scene = Scene(loop, crew)
    yield scene
    scene.acceptor.close()
    for closing in (*scene.clients, *scene.listeners):
        closing.close()


def stop_process(worker: WorkerHandle) -> None:
    worker.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)


@pytest.mark.slow
def test_connections_are_spread_and_each_says_its_listener(scene):
    first, second = scene.listen(), scene.listen()
    scene.hire(4)
    scene.acceptor.start([first, second])
    answers = scene.answers(scene.connect(40, first) + scene.connect(40, second))
    per_slot = Counter(slot for slot, _, _ in answers)
    assert min(per_slot.values()) >= 15, per_slot
    assert Counter(listener for _, _, listener in answers) == {0: 40, 1: 40}
    statistics = scene.statistics()
    assert statistics.accepted == statistics.handed_off == 80
    assert statistics.queued == statistics.waiting == 0


def test_the_master_keeps_no_descriptor_of_what_it_handed_off(scene):
    scene.listen()
    (worker,) = scene.hire()
    scene.acceptor.start(scene.listeners)
    before = len(os.listdir("/dev/fd"))
    clients = scene.connect(10)
    scene.answers(clients)
    assert len(os.listdir("/dev/fd")) == before + len(clients)
    assert worker.assignments.get(AssignmentCell.TCP_ASSIGNED) == 10


def test_unix_connections_are_handed_off_as_well(scene, tmp_path):
    listener = bind_unix(str(tmp_path / "a.sock"), 64, UnixAccess())
    listener.index = 7
    scene.listeners.append(listener)
    scene.hire()
    scene.acceptor.start(scene.listeners)
    assert scene.answers(scene.connect(3)) == [(0, 100, 7)] * 3


def test_nothing_is_accepted_before_start_and_the_backlog_is_served_then(scene):
    scene.listen()
    scene.hire()
    clients = scene.connect(5)
    scene.acceptor.serve_queue()  # as each switch of generations does
    scene.loop.turn(0)
    assert scene.statistics().accepted == 0
    scene.acceptor.start(scene.listeners)
    assert len(scene.answers(clients)) == 5


def test_a_turn_takes_a_bounded_number_from_each_listener(scene):
    scene.listen()
    scene.hire()
    scene.connect(ACCEPTS_PER_TURN + 10)
    scene.acceptor.start(scene.listeners)
    scene.loop.turn(1)
    assert scene.statistics().accepted == ACCEPTS_PER_TURN
    scene.loop.turn(1)
    assert scene.statistics().accepted == ACCEPTS_PER_TURN + 10


def test_without_a_worker_connections_wait_and_then_go_in_order(scene):
    scene.listen()
    scene.acceptor.start(scene.listeners)
    clients = scene.connect(10)
    turn_until(scene.loop, lambda: scene.statistics().waiting == 10)
    scene.hire()
    assert len(scene.answers(clients)) == 10
    statistics = scene.statistics()
    assert (statistics.queued, statistics.waiting) == (10, 0)


def test_a_full_queue_leaves_the_others_in_the_backlog_and_all_are_served(scene):
    scene.listen()
    scene.acceptor.start(scene.listeners)
    clients = scene.connect(QUEUE_SIZE + 50)
    turn_until(scene.loop, lambda: scene.statistics().waiting == QUEUE_SIZE)
    scene.loop.turn(0.01)
    assert scene.statistics().accepted == QUEUE_SIZE
    assert not scene.loop.is_watched(scene.listeners[0].fileno())
    scene.hire(2)
    assert len(scene.answers(clients)) == QUEUE_SIZE + 50
    assert scene.loop.is_watched(scene.listeners[0].fileno())
    assert scene.statistics().queued >= QUEUE_SIZE


@contextlib.contextmanager
def file_limit(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def with_few_files(scene: Scene, files: int) -> None:
    """Give the scene an acceptor of a process that may open so few."""
    scene.acceptor.close()
    with file_limit(files):
        scene.acceptor = Acceptor(scene.loop, scene.dispatcher, scene.crew.workers, keep_alive=5.0)


@pytest.mark.slow
def test_a_share_of_the_files_is_the_most_that_waits_and_all_are_served(scene):
    with_few_files(scene, 128)
    scene.listen()
    scene.acceptor.start(scene.listeners)
    clients = scene.connect(100)
    turn_until(scene.loop, lambda: scene.statistics().waiting == 128 // FILES_SHARE)
    scene.loop.turn(0.01)
    assert scene.statistics().accepted == 128 // FILES_SHARE
    assert not scene.loop.is_watched(scene.listeners[0].fileno())
    scene.hire()
    assert len(scene.answers(clients)) == 100


def test_stop_takes_all_of_the_backlog_although_few_may_wait_at_once(scene):
    with_few_files(scene, 64)
    scene.listen()
    scene.acceptor.start(scene.listeners)
    clients = scene.connect(50)
    scene.acceptor.stop()
    assert scene.statistics().waiting == 50
    scene.hire()
    assert len(scene.answers(clients)) == 50


def test_a_channel_that_is_full_makes_connections_wait_in_the_master(scene):
    scene.dispatcher = dispatcher = Stubborn()
    scene.acceptor.close()
    scene.acceptor = Acceptor(scene.loop, scene.dispatcher, scene.crew.workers, keep_alive=5.0)
    scene.listen()
    (worker,) = scene.hire()
    dispatcher.chosen = worker.worker_id
    scene.acceptor.start(scene.listeners)
    stop_process(worker)
    clients = scene.clients
    while scene.statistics().waiting == 0:
        scene.connect()
        turn_until(scene.loop, lambda: scene.statistics().accepted == len(scene.clients))
        assert len(clients) < 5000, "the channel took everything"
    assigned = worker.assignments.get(AssignmentCell.TCP_ASSIGNED)
    assert assigned == len(clients) - 1 == scene.dispatcher.assigned_tcp(100, 0)
    worker.signal(signal.SIGCONT)
    assert len(scene.answers(clients)) == len(clients)


def test_connections_of_a_dead_worker_are_served_by_another(scene):
    scene.listen()
    (doomed,) = scene.hire()
    scene.acceptor.start(scene.listeners)
    stop_process(doomed)
    clients = scene.connect(20)
    turn_until(scene.loop, lambda: scene.statistics().handed_off == 20)
    (other,) = scene.hire()
    scene.crew.kill(doomed)
    scene.dismiss(doomed)
    assert scene.acceptor.recover(doomed) == 20
    assert {worker_id for _, worker_id, _ in scene.answers(clients)} == {other.worker_id}
    assert scene.statistics().recovered == 20


def test_connections_of_a_worker_that_died_without_others_wait_for_its_successor(scene):
    scene.listen()
    (doomed,) = scene.hire()
    scene.acceptor.start(scene.listeners)
    stop_process(doomed)
    clients = scene.connect(3)
    turn_until(scene.loop, lambda: scene.statistics().handed_off == 3)
    scene.crew.kill(doomed)
    scene.dismiss(doomed)
    scene.acceptor.recover(doomed)
    assert scene.statistics().waiting == 3
    (successor,) = scene.hire()
    assert {worker_id for _, worker_id, _ in scene.answers(clients)} == {successor.worker_id}


def test_a_hand_off_to_a_worker_that_just_died_is_not_lost(scene):
    scene.listen()
    (doomed,) = scene.hire()
    scene.acceptor.start(scene.listeners)
    # Not even a copy of its end is left, as after a takeover.
    scene.crew.kill(doomed)
    doomed._undelivered.close()
    clients = scene.connect(3)
    turn_until(scene.loop, lambda: scene.statistics().waiting == 3)
    scene.dismiss(doomed)
    scene.hire()
    assert len(scene.answers(clients)) == 3


@pytest.mark.slow
def test_connections_are_taken_back_from_a_worker_that_stands_still(scene):
    scene.listen()
    blocked, other = scene.hire(2)
    scene.acceptor.start(scene.listeners)
    stop_process(blocked)
    clients = scene.connect(20)
    turn_until(scene.loop, lambda: scene.statistics().handed_off == 20)
    unread = blocked.assignments.get(AssignmentCell.TCP_ASSIGNED)
    assert unread > 0

    # The acceptor looks by itself, a moment after each hand-off.
    turn_until(scene.loop, lambda: scene.statistics().taken_back == unread)
    assert scene.acceptor.take_back(blocked) == 0
    assert {worker_id for _, worker_id, _ in scene.answers(clients)} == {other.worker_id}
    assert blocked.assignments.get(AssignmentCell.TCP_ASSIGNED) == 0
    assert blocked.assignments.get(AssignmentCell.TAKEN_BACK) == unread
    assert scene.statistics().taken_back == unread
    # It comes back and finds nothing that was already answered.
    blocked.signal(signal.SIGCONT)
    assert len(scene.answers(scene.connect(20))) == 20


def test_a_connection_that_failed_before_accept_is_counted_and_the_others_served(scene):
    class Socket(socket.socket):
        failures = 2

        def _accept(self):
            if Socket.failures:
                Socket.failures -= 1
                raise ConnectionAbortedError(errno.ECONNABORTED, "Software caused connection abort")
            return super()._accept()

    listener = scene.listen()
    listener.socket = Socket(fileno=listener.socket.detach())
    scene.hire()
    scene.acceptor.start([listener])
    assert len(scene.answers(scene.connect(3))) == 3
    assert scene.statistics().aborted == 2


def fill_gaps(fillers: list[int]) -> None:
    """Take every descriptor below the limit."""
    with contextlib.suppress(OSError):
        while True:
            fillers.append(os.dup(0))


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's bookkeeping differs")
def test_out_of_descriptors_slows_and_never_wedges(scene, caplog):
    scene.listen()
    scene.hire()
    scene.acceptor.start(scene.listeners)
    clients = [socket.socket() for _ in range(20)]
    scene.clients += clients
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    fillers: list[int] = []
    try:
        fill_gaps(fillers)
        for client in clients:
            client.settimeout(PATIENCE)
            client.connect(scene.listeners[0].socket.getsockname())
        assert len(scene.answers(clients)) == 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)
    assert scene.statistics().exhausted >= 1
    lines = [record for record in caplog.records if "cannot accept" in record.message]
    assert len(lines) == 1
    assert "ulimit -n" in lines[0].message
    # And at full speed again.
    assert len(scene.answers(scene.connect(20))) == 20


@contextlib.contextmanager
def free_files(count: int) -> Iterator[None]:
    """Leave room for so many messages with connections."""
    highest = max(int(name) for name in os.listdir("/dev/fd"))
    limit = next(n for n in itertools.count(highest + 1) if n - highest > count * largest_batch(n))
    fillers: list[int] = []
    with file_limit(limit if count else highest + 1):
        try:
            fill_gaps(fillers)
            left = count * largest_batch(limit)
            while left:
                os.close(fillers.pop())
                left -= 1
            yield
        finally:
            for fd in fillers:
                os.close(fd)


@pytest.mark.linux
@pytest.mark.parametrize("dies", [True, False])
def test_what_there_is_no_room_to_read_back_is_not_lost(scene, dies):
    scene.dispatcher = dispatcher = Stubborn()
    with_few_files(scene, 64)  # its messages have 8 connections
    scene.listen()
    (doomed,) = scene.hire()
    dispatcher.chosen = doomed.worker_id
    scene.acceptor.start(scene.listeners)
    stop_process(doomed)
    clients = scene.connect(64)
    turn_until(scene.loop, lambda: scene.statistics().handed_off == 64)
    (other,) = scene.hire()
    dispatcher.chosen = other.worker_id
    if dies:
        scene.crew.kill(doomed)
        scene.dismiss(doomed)
        read_back = scene.acceptor.recover
    else:
        read_back = scene.acceptor.take_back
    with free_files(0):
        assert read_back(doomed) == 0
        assert doomed.has_undelivered
    with free_files(1):
        count = read_back(doomed)
        assert count == 64 if dies else 0 < count < 64
    if not dies:
        assert read_back(doomed) == 64 - count
    assert {worker_id for _, worker_id, _ in scene.answers(clients)} == {other.worker_id}
    assert not doomed.has_undelivered


def test_stop_serves_the_backlog_first_and_then_accepts_no_more(scene):
    listener = scene.listen()
    scene.hire()
    scene.acceptor.start(scene.listeners)
    clients = scene.connect(ACCEPTS_PER_TURN * 2)
    scene.acceptor.stop()
    assert not scene.loop.is_watched(listener.fileno())
    listener.close()
    assert len(scene.answers(clients)) == ACCEPTS_PER_TURN * 2
    scene.acceptor.stop()


def test_close_ends_connections_that_nobody_served(scene):
    scene.listen()
    scene.acceptor.start(scene.listeners)
    clients = scene.connect(3)
    turn_until(scene.loop, lambda: scene.statistics().waiting == 3)
    scene.acceptor.close()
    for client in clients:
        assert client.recv(1) == b""
    assert scene.statistics().abandoned == 3
    scene.acceptor.close()


def test_client_ip_of_tcp_unix_and_closed_connections():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        accepted, _ = listener.accept()
        with accepted, client:
            assert client_ip(accepted.fileno()) == "127.0.0.1"
            accepted.getpeername()  # still open
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert client_ip(ours.fileno()) == ""
    with socket.socket() as unconnected:
        assert client_ip(unconnected.fileno()) == ""


@pytest.mark.slow
def test_another_program_is_told_of_a_connection_that_woke_in_the_same_turn(scene):
    """It was neither idle any more nor in the queue yet, and closed with its request in it."""
    scene.acceptor.balances_requests = True
    scene.listen()
    scene.acceptor.start(scene.listeners)
    [client] = scene.connect()
    turn_until(scene.loop, lambda: scene.statistics().idle == 1)
    told = []

    def tell() -> None:
        told.append((scene.acceptor.to_state(), scene.acceptor.inherited_fds()))

    client.send(b"a request")
    scene.loop.call_at(0.0, tell)  # before the timer by which it is given out
    scene.loop.turn(PATIENCE)
    [(state, fds)] = told
    assert state["idle"] == []
    [[listener, fd, _]] = state["waiting"]
    assert (listener, fds) == (0, [fd])
    scene.hire()
    scene.acceptor.serve_queue()
    assert len(scene.answers([client])) == 1

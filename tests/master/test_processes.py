"""Worker processes, with a tiny real one: start, talk, end, and nothing left behind."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import pytest

from asgiri.config import RingConfig
from asgiri.errors import ChannelClosedError, StartError
from asgiri.ipc import messages, segment
from asgiri.ipc.messages import Failed, ListenerInfo, Ready
from asgiri.ipc.records import encode_peer, record_header
from asgiri.ipc.scoreboard import AssignmentCell, Cell
from asgiri.ipc.stream import StreamWriter
from asgiri.master.processes import (
    MAX_UNSENT,
    WorkerHandle,
    WorkerIdentity,
    WorkerOrder,
    spawn,
)

PATIENCE = 20.0
IDENTITY = WorkerIdentity(worker_id=4711, slot=3, generation=2)


def order(behaviour: str = "serve", **changes) -> WorkerOrder:
    values = {"ring": RingConfig(), "secrets": None, "listeners": (), "udp_fds": (), **changes}
    config = {"behaviour": behaviour, "ring_size": values["ring"].size}
    return WorkerOrder(config=config, module="tests.support.tiny_worker", **values)


@pytest.fixture
def start():
    descriptors = open_descriptors()
    handles: list[WorkerHandle] = []

    def start_worker(behaviour: str = "serve", **changes) -> WorkerHandle:
        worker = spawn(IDENTITY, order(behaviour, **changes), selftest=False)
        handles.append(worker)
        return worker

    yield start_worker
    for worker in handles:
        if worker.reap() is None:
            worker.signal(signal.SIGKILL)
            worker.process.wait(PATIENCE)
        worker.close()
    gc.collect()
    assert open_descriptors() == descriptors


def open_descriptors() -> set[str]:
    return set(os.listdir("/dev/fd"))


def wait_readable(fd: int) -> None:
    assert select.select([fd], [], [], PATIENCE)[0], "nothing came"


def wait_message(worker: WorkerHandle, kind: type) -> messages.Message:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        wait_readable(worker.control.fileno())
        for message in worker.receive():
            if isinstance(message, kind):
                return message
    raise AssertionError(f"no {kind.__name__}")


def wait_exit(worker: WorkerHandle) -> int:
    if worker.pidfd >= 0:
        wait_readable(worker.pidfd)
    return worker.process.wait(PATIENCE)


def connect_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        accepted, _ = listener.accept()
    return client, accepted


def test_worker_starts_says_ready_and_drains(start):
    worker = start()
    assert wait_message(worker, Ready).pid == worker.pid
    assert str(worker) == f"worker[3] pid={worker.pid} gen=2"
    assert worker.scoreboard.get(Cell.WORKER_ID) == 4711
    assert worker.assignments.get(AssignmentCell.GENERATION) == 2
    assert worker.half_open == 0
    assert worker.ring_fill == 0.0
    assert worker.reap() is None
    assert worker.send(messages.Drain(1.0))
    wait_message(worker, messages.Drained)
    assert wait_exit(worker) == 0
    assert worker.reap() == 0


def test_a_connection_reaches_the_worker_over_the_connection_channel(start):
    worker = start()
    client, accepted = connect_pair()
    with client, accepted:
        assert worker.connections.send(b"\x05", [accepted.fileno()]) == 1
        accepted.close()
        assert client.makefile().readline() == "3 4711 5\n"


def test_what_is_handed_back_cannot_make_its_next_owner_wait(start):
    worker = start("silent")
    client, accepted = connect_pair()
    read, write = os.pipe()
    with client, accepted:
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        # The master keeps the worker's end, too.
        assert worker._undelivered.send(b"\0\1", [accepted.fileno(), read]) == 2
        ((listener, fd, _),) = worker.receive_handed_back()
        with socket.socket(fileno=fd) as received:
            linger = received.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
            assert (listener, struct.unpack("ii", linger)[0]) == (0, 0)
    assert worker.rubbish == 1  # a pipe is no connection
    os.close(read)
    os.close(write)


def test_exit_status_and_signal_are_told(start):
    failed = start("fail")
    message = wait_message(failed, Failed)
    assert (message.stage, message.summary) == ("import", "no module named nothing")
    assert wait_exit(failed) == 7
    killed = start("silent")
    killed.signal(signal.SIGKILL)
    assert wait_exit(killed) == -signal.SIGKILL
    killed.signal(signal.SIGTERM)  # reaped: nobody is hit


def test_undelivered_connections_come_back_in_order_and_unread(start):
    worker = start("silent")
    wait_message(worker, messages.Importing)
    clients = []
    for index in range(5):
        client, accepted = connect_pair()
        client.sendall(b"request %d" % index)
        with accepted:
            assert worker.connections.send(bytes([index]), [accepted.fileno()]) == 1
        clients.append(client)
    worker.signal(signal.SIGKILL)
    wait_exit(worker)
    recovered = worker.recover()
    assert [index for index, _ in recovered] == [0, 1, 2, 3, 4]
    for (index, fd), client in zip(recovered, clients, strict=True):
        assert not os.get_inheritable(fd)
        with client, socket.socket(fileno=fd) as connection:
            assert connection.recv(100) == b"request %d" % index
    assert worker.recover() == []


def test_a_worker_that_reads_no_messages_is_found_out(start):
    worker = start("silent")
    wait_message(worker, messages.Importing)
    sent = 0
    while worker.send(messages.SetLogLevel("x" * 1000)):
        sent += 1
        assert sent < 10_000
    assert worker.unsent == MAX_UNSENT
    worker.flush()
    assert worker.unsent == MAX_UNSENT


def test_messages_to_a_worker_that_is_gone_are_dropped(start):
    worker = start("exit")
    assert wait_exit(worker) == 5
    said = worker.receive()
    assert next(said) == messages.Importing()
    with pytest.raises(ChannelClosedError):
        next(said)
    assert worker.send(messages.Quit())
    assert worker.unsent == 0


def test_rubbish_from_a_worker_is_counted_and_the_rest_heard(start):
    worker = start("rubbish")
    heard = []
    while not any(isinstance(message, Ready) for message in heard):
        wait_readable(worker.control.fileno())
        heard += worker.receive()
    assert worker.rubbish == 5
    assert messages.Warning("that was rubbish") in heard


def udp_listener() -> tuple[socket.socket, ListenerInfo]:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    host, port = bound.getsockname()
    return bound, ListenerInfo(9, "udp", host, port, "", tls=True)


def check_records(worker: WorkerHandle, listener: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.settimeout(PATIENCE)
        peer = encode_peer(client.getsockname(), 9, None)
        payload = b"x" * 1200
        assert worker.records is not None
        assert worker.records.put(record_header(1200, 0, 0, len(peer)), peer, payload)
        worker.records.publish()
        answer, sender = client.recvfrom(100)
        assert answer == b"3 0 0 - 9 1200"
        assert sender == listener.getsockname()


@pytest.mark.parametrize("channel", ["auto", "stream"])
def test_records_reach_the_worker_and_it_answers_on_our_socket(start, channel):
    bound, info = udp_listener()
    with bound:
        worker = start(
            ring=RingConfig(channel=channel, size=1 << 20),
            secrets={"key": "value"},
            listeners=(info,),
            udp_fds=(bound.fileno(),),
        )
        wait_message(worker, Ready)
        expected = "ring" if channel == "auto" and sys.platform == "linux" else "stream"
        assert worker.record_channel == expected
        check_records(worker, bound)


def refuse(name: str):
    def refused(*arguments, **options):
        raise PermissionError(1, f"{name} is not permitted")

    return refused


def test_without_memfd_records_go_through_a_stream(start, monkeypatch):
    monkeypatch.setattr(segment.os, "memfd_create", refuse("memfd_create"), raising=False)
    bound, info = udp_listener()
    with bound:
        worker = start(secrets={}, listeners=(info,), udp_fds=(bound.fileno(),))
        assert worker.record_channel == "stream"
        assert isinstance(worker.records, StreamWriter)
        wait_message(worker, Ready)
        check_records(worker, bound)


def test_a_ring_that_is_demanded_and_refused_is_an_error_with_its_remedy(start, monkeypatch):
    monkeypatch.setattr(segment.os, "memfd_create", refuse("memfd_create"), raising=False)
    with pytest.raises(StartError, match="use --ring-channel stream"):
        start(secrets={}, ring=RingConfig(channel="ring"))


def test_without_pidfds_the_exit_is_found_by_asking(start, monkeypatch):
    monkeypatch.setattr(os, "pidfd_open", refuse("pidfd_open"), raising=False)
    worker = start()
    wait_message(worker, Ready)
    assert worker.pidfd == -1
    worker.signal(signal.SIGTERM)
    assert wait_exit(worker) == -signal.SIGTERM


def test_a_failing_start_leaves_no_process_and_no_descriptor(start, monkeypatch):
    started = []
    original = WorkerHandle.__init__

    def fail(self, identity, process, *rest):
        started.append(process)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(WorkerHandle, "__init__", fail)
    with pytest.raises(OSError, match="Too many open files"):
        start()
    monkeypatch.setattr(WorkerHandle, "__init__", original)
    assert started[0].returncode == -signal.SIGKILL


def test_a_worker_before_its_handlers_survives_signals_to_the_group(start):
    worker = start("silent")
    wait_message(worker, messages.Importing)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGTTIN):
        worker.signal(number)
    assert worker.reap() is None
    if sys.platform == "linux":
        status = Path(f"/proc/{worker.pid}/status").read_text()
        pending = int(status.split("ShdPnd:")[1].split()[0], 16)
        assert pending & (1 << (signal.SIGINT - 1))
    worker.signal(signal.SIGTERM)
    assert wait_exit(worker) == -signal.SIGTERM
    # Our own mask is as it was.
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_worker_has_the_interpreters_options_and_not_the_current_folder(start, tmp_path):
    hidden = tmp_path / "json.py"
    hidden.write_text("raise SystemExit('the wrong json')")
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        worker = start()
        wait_message(worker, Ready)
    finally:
        os.chdir(before)
    if sys.platform == "linux":
        command = Path(f"/proc/{worker.pid}/cmdline").read_bytes().split(b"\0")
        assert b"-P" in command


def test_the_tests_own_environment_variables_are_passed_on(start, monkeypatch):
    monkeypatch.setenv("ASGIRI_TEST_MARK", "seen")
    worker = start()
    wait_message(worker, Ready)
    if sys.platform == "linux":
        environment = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
        assert b"ASGIRI_TEST_MARK=seen" in environment


def test_closed_handle_may_be_closed_again(start):
    worker = start("exit")
    wait_exit(worker)
    worker.close()
    worker.close()

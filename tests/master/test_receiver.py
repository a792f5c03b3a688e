"""Datagrams from real sockets, steered by the real steering, to tiny real workers that answer."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from asgiri.config import RingConfig
from asgiri.ipc.connection_id import ConnectionIdCodec, ConnectionIdKind, ConnectionIdMint
from asgiri.ipc.records import PeerTable, RecordFlag
from asgiri.ipc.scoreboard import AssignmentCell, Cell
from asgiri.ipc.tokens import QuicSecrets, ResetTokens, RetryTokens
from asgiri.master.binding import Listener, bind_port, tune_udp
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.loop import EventLoop
from asgiri.master.processes import WorkerHandle
from asgiri.master.receiver import DATAGRAMS_PER_TURN, KernelDrops, Receiver
from asgiri.master.steering import Steering
from tests.support.crew import PATIENCE, Crew, turn_until

SECRETS = QuicSecrets.derive(b"a root secret of the tests")
OTHER_VERSION = (b"\xc0\x1a\x2a\x3a\x4a\x08" + b"d" * 8 + b"\x08" + b"s" * 8).ljust(1200)
"""Answered by version negotiation, with the connection IDs the other way round."""
LINUX = sys.platform == "linux"
only_linux = pytest.mark.skipif(not LINUX, reason="GRO and /proc are Linux'")


class Scene:
    """One UDP listener with its receiver, and workers that answer each record."""

    def __init__(self, loop: EventLoop, crew: Crew, host: str) -> None:
        self.loop = loop
        self.crew = crew
        self.listener: Listener = bind_port(host, 0, ("udp",), 1)[0]
        self.listener.index = 2
        tune_udp(self.listener)
        self.dispatcher = Dispatcher(
            BalancePolicy.LEAST_LOADED, random=lambda: 0.5, hash_key=b"key"
        )
        codec = ConnectionIdCodec(SECRETS.connection_id_key, server_id=SECRETS.server_id)
        self.mint = ConnectionIdMint(codec, 0, random=secrets.token_bytes)
        self.steering: Steering[WorkerHandle] = Steering(
            codec=codec,
            mint=self.mint,
            reset_tokens=ResetTokens(SECRETS.reset_key),
            retry_tokens=RetryTokens(SECRETS.token_key, random=secrets.token_bytes),
            chooser=self.dispatcher,
            random=secrets.token_bytes,
        )
        self.receiver = Receiver(loop, self.listener, self.steering, PeerTable())
        self.receiver.start()
        self.sockets = [self.listener.socket]

    def hire(self, count: int = 1, channel: str = "auto", size: int = 1 << 20):
        workers = []
        for _ in range(count):
            worker = self.crew.start(
                ring=RingConfig(channel=channel, size=size),
                secrets=SECRETS.to_json(),
                listeners=(self.listener.info(tls=True),),
                udp_fds=(self.listener.fileno(),),
            )
            self.dispatcher.add_worker(worker.worker_id, worker.slot, worker.scoreboard)
            self.steering.add_worker(worker.worker_id, worker, worker)
            workers.append(worker)
        self.dispatcher.set_ready(list(self.crew.workers))
        self.steering.set_ready(list(self.crew.workers))
        return workers

    def client(self, host: str = "127.0.0.1") -> socket.socket:
        client = socket.socket(
            socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
        )
        client.settimeout(PATIENCE)
        # Connected: an answer from any other address would not reach it.
        client.connect((host, self.listener.port))
        self.sockets.append(client)
        return client

    def short(self, worker_id: int, size: int = 100) -> bytes:
        connection_id = self.mint.mint_for(worker_id, ConnectionIdKind.CONNECTION)
        return (b"\x40" + connection_id).ljust(size, b"\xaa")

    def receive(self, client: socket.socket) -> bytes:
        client.setblocking(False)
        found: list[bytes] = []

        def came() -> bool:
            try:
                found.append(client.recv(65535))
            except BlockingIOError:
                return False
            return True

        turn_until(self.loop, came)
        return found[0]

    def close(self) -> None:
        self.receiver.stop()
        for one in self.sockets:
            one.close()


@pytest.fixture
def scene(loop, crew) -> Iterator[Scene]:
    scene = Scene(loop, crew, "127.0.0.1")
    yield scene
    scene.close()


@pytest.fixture
def wildcard(loop, crew) -> Iterator[Scene]:
    scene = Scene(loop, crew, "0.0.0.0")
    yield scene
    scene.close()


def initial(size: int = 1200) -> bytes:
    """An Initial of version 1 as far as the master looks, with a random connection ID."""
    head = b"\xc0" + struct.pack(">I", 1) + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
    return (head + b"\x00" + struct.pack(">H", 0x4000 | size - len(head) - 3)).ljust(size, b"\xbb")


@pytest.mark.slow
def test_a_datagram_goes_to_the_worker_that_its_connection_id_names(scene):
    workers = scene.hire(2)
    client = scene.client()
    for worker in (*workers, *workers):
        client.send(scene.short(worker.worker_id, 333))
        assert scene.receive(client) == b"%d 0 0 - 2 333" % worker.slot
    assert scene.receiver.statistics().datagrams == 4


def test_one_turn_takes_many_datagrams_and_wakes_each_worker_once(scene):
    workers = scene.hire(2)
    client = scene.client()
    for worker in workers:
        stop_process(worker)
    for worker in workers * 50:
        client.send(scene.short(worker.worker_id))
    scene.loop.turn(1)
    assert scene.receiver.statistics().datagrams == 100
    for worker in workers:
        assert worker.ring_fill > 0
        worker.signal(signal.SIGCONT)
    answers = [scene.receive(client) for _ in range(100)]
    assert answers.count(b"0 0 0 - 2 100") == answers.count(b"1 0 0 - 2 100") == 50
    assert workers[0].scoreboard.get(Cell.RING_RECORDS) == 50


def test_a_worker_cannot_make_a_udp_socket_wait(scene):
    """O_NONBLOCK is the socket's, not the descriptor's: a worker's copy can clear it."""
    (worker,) = scene.hire()
    client = scene.client()
    with scene.listener.socket.dup() as copy:
        copy.setblocking(True)
        client.send(scene.short(worker.worker_id))
        assert scene.receive(client)
        scene.receiver.receive()  # there is nothing


def test_a_turn_is_bounded(scene):
    (worker,) = scene.hire()
    client = scene.client()
    for _ in range(DATAGRAMS_PER_TURN + 10):
        client.send(scene.short(worker.worker_id))
    scene.loop.turn(1)
    assert scene.receiver.statistics().datagrams == DATAGRAMS_PER_TURN
    scene.loop.turn(1)
    assert scene.receiver.statistics().datagrams == DATAGRAMS_PER_TURN + 10


def test_a_new_connection_gets_a_worker_and_its_flags(scene):
    scene.hire()
    client = scene.client()
    client.send(initial())
    flags = int(scene.receive(client).split()[1])
    assert flags == RecordFlag.LONG_HEADER | RecordFlag.NEW_CONNECTION


def test_steering_answers_from_the_listening_port(scene):
    scene.hire()
    client = scene.client()
    client.send(
        (b"\xc0" + b"\x1a\x2a\x3a\x4a" + b"\x08" + b"d" * 8 + b"\x08" + b"s" * 8).ljust(1200)
    )
    answer = scene.receive(client)
    assert answer[1:5] == bytes(4)
    assert answer[5:23] == b"\x08" + b"s" * 8 + b"\x08" + b"d" * 8
    client.send(scene.short(999_999))
    reset = scene.receive(client)
    assert 22 <= len(reset) <= 43
    statistics = scene.receiver.statistics()
    assert (statistics.replies_sent, statistics.replies_failed) == (2, 0)


def test_strangers_and_empty_datagrams_get_nothing(scene):
    (worker,) = scene.hire()
    client = scene.client()
    for datagram in (b"", b"x", b"\x40" + b"y" * 99, b"\x40" * 22):
        client.send(datagram)
    client.send(scene.short(worker.worker_id))
    assert scene.receive(client) == b"0 0 0 - 2 100"
    assert scene.receiver.statistics().datagrams == 5
    assert sum(scene.steering.statistics().drops.values()) == 4


def test_the_largest_datagram_passes(scene):
    (worker,) = scene.hire()
    client = scene.client()
    client.send(scene.short(worker.worker_id, 65507))
    assert scene.receive(client) == b"0 0 0 - 2 65507"


@pytest.mark.parametrize("channel", ["auto", "stream"])
def test_a_full_channel_drops_the_newest_counts_and_goes_on(scene, channel):
    (worker,) = scene.hire(channel=channel, size=1 << 17)
    client = scene.client()
    stop_process(worker)
    size = 1208 + 8
    fitting = (1 << 17) // (size + 8)
    for _ in range(fitting + 20):
        client.send(scene.short(worker.worker_id, 1208))
        scene.loop.turn(0)
    turn_until(scene.loop, lambda: scene.receiver.statistics().datagrams == fitting + 20)
    dropped = scene.receiver.statistics().ring_full
    assert 0 < dropped <= 25
    assert worker.assignments.get(AssignmentCell.RING_DROP_FULL) == dropped
    assert scene.steering.statistics().drops["ring_full"] == dropped
    worker.signal(signal.SIGCONT)
    answers = [scene.receive(client) for _ in range(fitting + 20 - dropped)]
    assert set(answers) == {b"0 0 0 - 2 1208"}
    client.send(scene.short(worker.worker_id))
    assert scene.receive(client) == b"0 0 0 - 2 100"


def test_a_stream_channel_whose_kernel_buffer_is_full_is_flushed_later(scene):
    (worker,) = scene.hire(channel="stream", size=1 << 22)
    client = scene.client()
    stop_process(worker)
    records = worker.records
    assert records is not None
    sent = 0
    while not records.backlog:
        client.send(scene.short(worker.worker_id, 1200))
        sent += 1
        turn_until(scene.loop, lambda: scene.receiver.statistics().datagrams == sent)  # noqa: B023
    assert scene.loop.is_watched(records.fileno())
    worker.signal(signal.SIGCONT)
    turn_until(scene.loop, lambda: worker.scoreboard.get(Cell.RING_RECORDS) == sent)
    assert records.backlog == 0
    assert not scene.loop.is_watched(records.fileno())


# Wildcards


@only_linux
@pytest.mark.linux
def test_on_a_wildcard_the_record_carries_the_local_address(wildcard):
    (worker,) = wildcard.hire()
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
        client = wildcard.client(host)
        client.send(wildcard.short(worker.worker_id))
        local = socket.inet_aton(host).hex().encode()
        assert wildcard.receive(client) == b"0 0 0 " + local + b" 2 100"


@only_linux
@pytest.mark.linux
def test_answers_of_steering_leave_from_the_address_that_was_asked(wildcard):
    wildcard.hire()
    for host in ("127.0.0.1", "127.0.0.2"):
        client = wildcard.client(host)
        client.send(OTHER_VERSION)
        assert wildcard.receive(client)[1:5] == bytes(4)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_ipv6(loop, crew, host):
    scene = Scene(loop, crew, host)
    try:
        (worker,) = scene.hire()
        client = scene.client("::1")
        client.send(scene.short(worker.worker_id))
        local = b"-" if host == "::1" else b"0" * 31 + b"1"
        assert scene.receive(client) == b"0 0 0 " + local + b" 2 100"
        client.send(OTHER_VERSION)
        assert scene.receive(client)[1:5] == bytes(4)
    finally:
        scene.close()


def send_train(client: socket.socket, datagrams: list[bytes]) -> None:
    """Send by UDP_SEGMENT, so that the kernel joins them again on the way in."""
    size = struct.pack("=H", len(datagrams[0]))
    client.sendmsg([b"".join(datagrams)], [(17, 103, size)])


@only_linux
@pytest.mark.linux
def test_a_train_for_one_connection_stays_one_record(wildcard):
    (worker,) = wildcard.hire()
    client = wildcard.client()
    datagram = wildcard.short(worker.worker_id, 500)
    send_train(client, [datagram] * 9 + [datagram[:300]])
    assert wildcard.receive(client) == b"0 0 500 7f000001 2 4800"
    statistics = wildcard.receiver.statistics()
    assert (statistics.datagrams, statistics.trains) == (10, 1)


@only_linux
@pytest.mark.linux
def test_a_train_for_several_connections_is_taken_apart(wildcard):
    workers = wildcard.hire(2)
    client = wildcard.client()
    send_train(client, [wildcard.short(worker.worker_id, 500) for worker in workers * 3])
    answers = sorted(wildcard.receive(client) for _ in range(6))
    assert answers == [b"0 0 0 7f000001 2 500"] * 3 + [b"1 0 0 7f000001 2 500"] * 3
    statistics = wildcard.receiver.statistics()
    assert (statistics.datagrams, statistics.trains) == (6, 0)


# Faults


def test_an_answer_that_cannot_be_sent_is_counted(scene):
    class Socket(socket.socket):
        def sendto(self, *arguments):
            raise PermissionError(errno.EPERM, "Operation not permitted")

    scene.receiver.stop()
    scene.listener.socket = Socket(fileno=scene.listener.socket.detach())
    scene.sockets.append(scene.listener.socket)
    scene.receiver = Receiver(scene.loop, scene.listener, scene.steering, PeerTable())
    scene.receiver.start()
    (worker,) = scene.hire()
    client = scene.client()
    client.send(scene.short(999_999))
    client.send(scene.short(worker.worker_id))
    assert scene.receive(client) == b"0 0 0 - 2 100"
    assert scene.receiver.statistics().replies_failed == 1


def test_an_error_of_the_socket_is_counted_and_the_rest_published(scene):
    class Socket(socket.socket):
        calls = 0

        def recvfrom(self, size, flags):
            Socket.calls += 1
            if Socket.calls == 2:
                raise OSError(errno.ENOBUFS, "No buffer space available")
            return super().recvfrom(size, flags)

    scene.receiver.stop()
    scene.listener.socket = Socket(fileno=scene.listener.socket.detach())
    scene.sockets.append(scene.listener.socket)
    scene.receiver = Receiver(scene.loop, scene.listener, scene.steering, PeerTable())
    scene.receiver.start()
    (worker,) = scene.hire()
    client = scene.client()
    for _ in range(2):
        client.send(scene.short(worker.worker_id))
    for _ in range(2):
        assert scene.receive(client) == b"0 0 0 - 2 100"
    assert scene.receiver.statistics().receive_errors == 1


@only_linux
@pytest.mark.linux
def test_what_the_kernel_drops_is_counted_and_said_once(scene, caplog):
    drops = KernelDrops([scene.receiver])
    assert drops.poll() == 0
    scene.listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client = scene.client()
    for _ in range(100):
        client.send(b"z" * 1200)
    lost = drops.poll()
    assert 0 < lost < 100
    assert drops.poll() == 0
    assert scene.receiver.statistics().kernel_drops == lost
    messages = [record.message for record in caplog.records if "were lost" in record.message]
    assert len(messages) == 1
    assert messages[0].startswith(f"{lost} datagrams were lost")


def test_without_proc_nothing_is_counted(scene, tmp_path):
    assert KernelDrops([scene.receiver], [tmp_path / "missing"]).poll() == 0


def test_stop_leaves_the_socket_open_and_may_come_late(scene):
    scene.receiver.stop()
    assert scene.listener.fileno() >= 0
    assert not scene.loop.is_watched(scene.listener.fileno())
    scene.listener.close()
    scene.receiver.stop()


def stop_process(worker: WorkerHandle) -> None:
    worker.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)

"""Datagrams out: trains, the right source address, and a socket that is full."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from asgiri.ipc.records import Peer
from asgiri.ipc.scoreboard import Cell, Scoreboard
from asgiri.worker.transport import udp
from asgiri.worker.transport.udp import DatagramSender

LOOPBACK = ("127.0.0.1", 9)


def scoreboard() -> Scoreboard:
    return Scoreboard(memoryview(bytearray(4096)))


class ScriptedSocket:
    """Stands in for the operating system: answers each send as told, else takes it."""

    def __init__(self, readable: socket.socket) -> None:
        self._fd = readable.fileno()
        self.answers: list[BaseException | None] = []
        self.sent: list[list[bytes]] = []
        self.ancillary: list[Any] = []

    def fileno(self) -> int:
        return self._fd

    def sendto(self, datagram: bytes, flags: int, address: Any) -> None:
        self.sendmsg([datagram], [], flags, address)

    def sendmsg(self, datagrams: list[bytes], ancillary: Any, flags: int, address: Any) -> None:
        assert flags == socket.MSG_DONTWAIT
        if self.answers and (answer := self.answers.pop(0)) is not None:
            raise answer
        self.sent.append(list(datagrams))
        self.ancillary.append(list(ancillary))


@pytest.fixture
def real() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        yield opened


PEER = Peer(LOOPBACK, 0, None, 0)
FULL = BlockingIOError(errno.EAGAIN, "full")


def sender(sock: Any) -> tuple[DatagramSender, Scoreboard]:
    board = scoreboard()
    return DatagramSender(asyncio.get_running_loop(), sock, board), board


async def test_datagrams_arrive_one_by_one(real: socket.socket):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        sending, board = sender(real)
        datagrams = [b"a" * 1200] * 5 + [b"b" * 300, b"c" * 1200, b"d" * 40]
        sending.send(datagrams, Peer(receiver.getsockname(), 0, None, 0))
        assert [receiver.recv(2000) for _ in datagrams] == datagrams
        assert board.get(Cell.DATAGRAMS_SENT) == 8
        sending.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux cuts trains")
async def test_equal_datagrams_leave_in_trains(real: socket.socket):
    scripted = ScriptedSocket(real)
    sending, _ = sender(scripted)
    sizes = [1200, 1200, 700, 1200, 1300, 100, 1200]
    sending.send([bytes(size) for size in sizes], PEER)
    assert [[len(datagram) for datagram in train] for train in scripted.sent] == [
        [1200, 1200, 700],
        [1200],
        [1300, 100],
        [1200],
    ]
    sending.send([bytes(1200)] * 200, PEER)
    trains = scripted.sent[4:]
    assert sum(map(len, trains)) == 200
    for train in trains:
        assert len(train) <= udp.MAX_SEGMENTS
        assert sum(map(len, train)) <= 65_507


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux cuts trains")
@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
async def test_where_nobody_cuts_trains_they_go_singly_from_then_on(
    real: socket.socket, number: int
):
    scripted = ScriptedSocket(real)
    scripted.answers = [OSError(number, "no offload")]
    sending, board = sender(scripted)
    sending.send([bytes(1200)] * 3, PEER)
    sending.send([bytes(1200)] * 2, PEER)
    assert [len(train) for train in scripted.sent] == [1] * 5
    assert (board.get(Cell.DATAGRAMS_SENT), board.get(Cell.DATAGRAMS_FAILED)) == (5, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux cuts trains")
async def test_a_train_that_is_sent_singly_may_meet_a_full_socket(real: socket.socket):
    scripted = ScriptedSocket(real)
    scripted.answers = [OSError(errno.EIO, "no offload"), None, FULL]
    sending, board = sender(scripted)
    sending.send([b"1" * 900, b"2" * 900, b"3" * 900], PEER)
    assert (len(scripted.sent), sending.queued) == (1, 2)
    await until(lambda: not sending.queued)
    assert [train[0][:1] for train in scripted.sent] == [b"1", b"2", b"3"]
    assert board.get(Cell.DATAGRAMS_SENT) == 3


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_what_a_full_socket_does_not_take_waits_in_order(real: socket.socket):
    scripted = ScriptedSocket(real)
    scripted.answers = [FULL, FULL]
    sending, board = sender(scripted)
    sending.send([b"1"], PEER)
    sending.send([b"2"], PEER)
    assert (scripted.sent, sending.queued) == ([], 2)
    await until(lambda: not sending.queued)
    assert scripted.sent == [[b"1"], [b"2"]]
    assert board.get(Cell.DATAGRAMS_BLOCKED) == 2
    sending.send([b"3"], PEER)
    assert scripted.sent[-1] == [b"3"]


async def test_beyond_the_bound_datagrams_are_dropped_and_counted(real: socket.socket):
    scripted = ScriptedSocket(real)
    scripted.answers = [FULL] * 10
    sending, board = sender(scripted)
    sending.send([b"x"] * (udp.MAX_QUEUED + 10), PEER)
    sending.send([b"y"] * 5, PEER)
    assert sending.queued == udp.MAX_QUEUED
    assert board.get(Cell.DATAGRAMS_FAILED) == 15
    sending.close()
    assert board.get(Cell.DATAGRAMS_FAILED) == 15 + udp.MAX_QUEUED
    sending.close()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOBUFS, errno.ENETUNREACH, errno.EMSGSIZE])
async def test_what_the_system_refuses_is_lost_and_counted(real: socket.socket, number: int):
    scripted = ScriptedSocket(real)
    scripted.answers = [OSError(number, os.strerror(number))]
    sending, board = sender(scripted)
    sending.send([b"lost"], PEER)
    sending.send([b"sent"], PEER)
    assert scripted.sent == [[b"sent"]]
    assert board.get(Cell.DATAGRAMS_FAILED) == 1


async def test_the_shared_socket_stays_as_the_master_made_it(real: socket.socket):
    """O_NONBLOCK belongs to all who share it (DISPATCH D11)."""
    for blocking in (True, False):
        real.setblocking(blocking)
        copy = real.dup()
        before = os.get_blocking(real.fileno())
        sending, _ = sender(copy)
        sending.send([b"x"] * 3, Peer(real.getsockname(), 0, None, 0))
        sending.close()
        assert os.get_blocking(real.fileno()) is before
        copy.close()


@pytest.mark.parametrize(
    ("local", "interface", "expected"),
    [
        (socket.inet_aton("127.0.0.2"), 3, (0, bytes(4) + b"\x7f\x00\x00\x02" + bytes(4))),
        (socket.inet_pton(socket.AF_INET6, "2001:db8::1"), 3, (41, 0)),
        (socket.inet_pton(socket.AF_INET6, "fe80::1"), 3, (41, 3)),
    ],
)
async def test_a_reply_leaves_from_the_address_that_was_asked(
    real: socket.socket, local: bytes, interface: int, expected: tuple[int, Any]
):
    scripted = ScriptedSocket(real)
    sending, _ = sender(scripted)
    sending.send([b"x"], Peer(LOOPBACK, 0, local, interface))
    sending.send([b"y" * 100] * 2, Peer(LOOPBACK, 0, local, interface))
    for ancillary in scripted.ancillary:
        (level, _, data), *_ = ancillary
        if len(local) == 4:
            assert (level, data) == expected
        else:
            assert (level, data) == (41, local + expected[1].to_bytes(4, sys.byteorder))


async def test_a_client_that_asked_another_address_hears_from_it():
    """Without IP_PKTINFO a connected client never sees the reply."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wildcard,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        wildcard.bind(("0.0.0.0", 0))
        client.connect(("127.0.0.2", wildcard.getsockname()[1]))
        client.settimeout(5)
        sending, _ = sender(wildcard)
        peer = Peer(client.getsockname(), 0, socket.inet_aton("127.0.0.2"), 1)
        sending.send([b"a" * 500, b"b" * 500], peer)
        assert client.recv(1000) == b"a" * 500
        assert client.recv(1000) == b"b" * 500

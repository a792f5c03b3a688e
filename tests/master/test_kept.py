"""Sockets that outlived a master: found by their address, closed when nobody wants them."""

from __future__ import annotations

import os
import socket

import pytest

from asgiri.errors import StartError
from asgiri.master.binding import UnixAccess, bind_port, bind_unix
from asgiri.master.kept import KeptSockets

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.fixture
def keep():
    """Bind like a master, and keep duplicates as a service manager does."""
    made = []

    def keep_these(*listeners):
        kept = KeptSockets([os.dup(listener.fileno()) for listener in listeners])
        made.extend([*listeners, kept])
        return kept

    yield keep_these
    for one in made:
        one.close()


def is_same(one: socket.socket, other: socket.socket) -> bool:
    return os.fstat(one.fileno()).st_ino == os.fstat(other.fileno()).st_ino


def test_a_port_is_bound_by_taking_its_sockets(keep):
    tcp, udp = bind_port("127.0.0.1", 0, ("tcp", "udp"), 16)
    with socket.create_connection(("127.0.0.1", tcp.port)) as waiting:
        kept = keep(tcp, udp)
        again = bind_port("127.0.0.1", tcp.port, ("tcp", "udp"), 16, kept=kept)
        assert len(kept) == 0
        assert all(is_same(a.socket, b.socket) for a, b in zip(again, (tcp, udp), strict=True))
        assert not any(os.get_inheritable(listener.fileno()) for listener in again)
        accepted, address = again[0].socket.accept()
        assert address == waiting.getsockname()
        accepted.close()
    for listener in again:
        listener.close()


def test_port_0_takes_any_port_and_its_twin(keep):
    tcp, udp = bind_port("127.0.0.1", 0, ("tcp", "udp"), 16)
    kept = keep(tcp, udp)
    again = bind_port("127.0.0.1", 0, ("tcp", "udp"), 16, kept=kept)
    assert [listener.port for listener in again] == [tcp.port, udp.port]
    for listener in again:
        listener.close()


def test_nothing_else_is_taken(keep):
    [tcp] = bind_port("127.0.0.1", 0, ("tcp",), 16)
    kept = keep(tcp)
    assert kept.take(socket.AF_INET, DATAGRAM, "127.0.0.1", tcp.port) is None
    assert kept.take(socket.AF_INET, STREAM, "127.0.0.2", tcp.port) is None
    assert kept.take(socket.AF_INET6, STREAM, "127.0.0.1", tcp.port) is None
    assert kept.take(socket.AF_INET, STREAM, "127.0.0.1", tcp.port + 1) is None
    assert len(kept) == 1
    kept.close()
    kept.close()
    assert len(kept) == 0


def test_the_same_socket_twice_is_one(keep):
    [tcp] = bind_port("127.0.0.1", 0, ("tcp",), 16)
    assert len(keep(tcp, tcp)) == 1


def test_a_unix_socket_is_taken_while_its_file_is_there(keep, tmp_path):
    path = str(tmp_path / "a.sock")
    before = bind_unix(path, 16, UnixAccess())
    again = bind_unix(path, 16, UnixAccess(), kept=keep(before))
    assert is_same(again.socket, before.socket)
    assert again.inode == before.inode
    kept = keep(again)
    os.unlink(path)
    fresh = bind_unix(path, 16, UnixAccess(), kept=kept)
    assert not is_same(fresh.socket, again.socket)
    assert len(kept) == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    fresh.close()


def test_what_is_no_socket_is_named():
    reading, writing = os.pipe()
    with pytest.raises(StartError, match=f"fd://{reading}, called asgiri-listener"):
        KeptSockets([reading])
    os.close(reading)
    os.close(writing)

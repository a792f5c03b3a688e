"""Idle connections in the master: woken by their next byte, closed when none comes, never lost."""

import socket

import pytest

from asgiri.master.idle import Connection, IdlePool
from asgiri.master.loop import EventLoop
from tests.support.crew import turn_until


class Scene:
    def __init__(self, *, keep_alive=60.0, limit=100):
        self.loop = EventLoop()
        self.awake = []
        self.pool = IdlePool(self.loop, self.awake.append, keep_alive=keep_alive, limit=limit)
        self.clients = []

    def connect(self):
        """Return the client's end of a connection that is in the pool, and the pool's
        descriptor."""
        ours, client = socket.socketpair()
        self.clients.append(client)
        connection = Connection(3, ours.detach(), "192.0.2.1")
        assert self.pool.add(connection)
        return client, connection

    def close(self):
        self.pool.close()
        for connection in self.awake:
            socket.socket(fileno=connection.fd).close()
        for client in self.clients:
            client.close()
        self.loop.close()


@pytest.fixture
def scene():
    made = Scene()
    yield made
    made.close()


def test_the_first_byte_wakes_its_connection_and_no_other(scene):
    scene.connect()
    client, connection = scene.connect()
    scene.connect()
    client.sendall(b"GET / HTTP/1.1\r\n")
    turn_until(scene.loop, lambda: scene.awake)
    assert scene.awake == [connection]
    assert len(scene.pool) == 2
    # Not one byte of it was read.
    with socket.socket(fileno=scene.awake.pop().fd) as served:
        assert served.recv(100) == b"GET / HTTP/1.1\r\n"


def test_a_request_that_came_on_the_way_here_wakes_it_too(scene):
    ours, client = socket.socketpair()
    scene.clients.append(client)
    client.sendall(b"x")
    scene.pool.add(Connection(0, ours.detach(), ""))
    turn_until(scene.loop, lambda: scene.awake)


def test_the_end_of_a_connection_wakes_it(scene):
    client, connection = scene.connect()
    client.close()
    turn_until(scene.loop, lambda: scene.awake)
    assert scene.awake == [connection]


def test_what_stays_silent_is_closed():
    scene = Scene(keep_alive=0.05)
    try:
        clients = [scene.connect()[0] for _ in range(3)]
        turn_until(scene.loop, lambda: not len(scene.pool))
        assert scene.pool.expired == 3
        assert [client.recv(1) for client in clients] == [b""] * 3
        # The clock is set again for those that come later.
        scene.connect()
        turn_until(scene.loop, lambda: not len(scene.pool))
        assert scene.awake == []
    finally:
        scene.close()


def test_there_is_room_for_so_many_only():
    scene = Scene(limit=2)
    try:
        scene.connect()
        scene.connect()
        ours, client = socket.socketpair()
        with ours, client:
            assert not scene.pool.add(Connection(0, ours.fileno(), ""))
        assert scene.pool.refused == 1
    finally:
        scene.close()


def test_closing_passes_on_what_has_just_begun_to_ask(scene):
    asking, connection = scene.connect()
    silent, _ = scene.connect()
    asking.sendall(b"GET")
    scene.pool.close()
    assert scene.awake == [connection]
    assert silent.recv(1) == b""
    assert len(scene.pool) == 0

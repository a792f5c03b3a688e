"""The control socket with real clients: what they may, and what is done about the others."""

from __future__ import annotations

import array
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asgiri.config import AdminConfig
from asgiri.errors import StartError
from asgiri.ipc.control import (
    ANSWERS,
    REQUESTS,
    Answer,
    Board,
    Done,
    Reload,
    Request,
    Scale,
    Watch,
)
from asgiri.master import control as module
from asgiri.master.binding import UnixAccess
from asgiri.master.control import MAX_CLIENTS, MAX_WATCHERS, Control, open_listeners
from asgiri.master.loop import EventLoop
from tests.support.crew import turn_until
from tests.support.memory import no_fd_leaks


class Desk:
    """Takes orders: `Scale` is answered at once, others when the test says so."""

    def __init__(self) -> None:
        self.pending: list[tuple[Request, Callable[[Answer], None]]] = []
        self.watchers = 0
        self.board = os.open(os.devnull, os.O_RDONLY)

    def carry_out(self, request: Request, answer: Callable[[Answer], None]) -> None:
        if isinstance(request, Scale):
            answer(Done("x" * request.count))
        else:
            self.pending.append((request, answer))

    def watch(self) -> int:
        self.watchers += 1
        return self.board

    def unwatch(self) -> None:
        self.watchers -= 1


class Scene:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = EventLoop()
        self.desk = Desk()
        self.listeners = open_listeners(AdminConfig(control_socket=str(path)), UnixAccess())
        self.control = Control(self.loop, self.listeners, self.desk)
        self.control.start()
        self.clients: list[socket.socket] = []

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(0)
        client.connect(str(self.path))
        self.clients.append(client)
        return client

    def ask(self, request: Request) -> socket.socket:
        client = self.connect()
        client.send(REQUESTS.encode(request))
        return client

    def answer(self, client: socket.socket) -> Answer:
        buffer = bytearray()
        found: list[Answer] = []

        def came() -> bool:
            try:
                received = client.recv(65536)
            except BlockingIOError:
                return False
            assert received, "closed without an answer"
            buffer.extend(received)
            message = ANSWERS.take_untrusted(buffer)
            if message is not None:
                found.append(message)
            return bool(found)

        turn_until(self.loop, came)
        return found[0]

    def wait_closed(self, client: socket.socket) -> None:
        def closed() -> bool:
            try:
                return not client.recv(65536)
            except BlockingIOError:
                return False
            except ConnectionResetError:  # it had not read all that was sent
                return True

        turn_until(self.loop, closed)

    def close(self) -> None:
        self.control.close()
        self.listeners.close()
        for client in self.clients:
            client.close()
        os.close(self.desk.board)
        self.loop.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with no_fd_leaks():
        scene = Scene(tmp_path / "control.sock")
        yield scene
        scene.close()
    assert not scene.path.exists()


def test_a_client_is_answered_and_may_ask_again(scene):
    client = scene.ask(Scale(3))
    assert scene.answer(client) == Done("xxx")
    client.send(REQUESTS.encode(Scale(1)))
    assert scene.answer(client) == Done("x")
    assert (scene.control.requests, scene.control.refused) == (2, 0)


def test_only_its_user_may_use_the_socket(scene):
    status = scene.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.geteuid()


def test_a_stranger_is_not_let_in_even_past_the_mode(scene, monkeypatch):
    monkeypatch.setattr(module, "_credentials", lambda connection: (1, os.geteuid() + 1))
    scene.wait_closed(scene.ask(Scale(1)))
    assert (scene.control.requests, scene.control.refused) == (0, 1)


def test_a_large_answer_goes_to_a_client_that_reads_slowly(scene):
    client = scene.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.send(REQUESTS.encode(Scale(900_000)))
    assert scene.answer(client) == Done("x" * 900_000)


def test_an_order_may_take_longer_than_a_client_for_its_request(scene, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    client = scene.ask(Reload())
    turn_until(scene.loop, lambda: scene.desk.pending)
    for _ in range(3):
        scene.loop.turn(0.02)
    ((_, answer),) = scene.desk.pending
    answer(Done("generation 2 serves"))
    assert scene.answer(client) == Done("generation 2 serves")


def test_who_is_gone_is_not_answered(scene):
    client = scene.ask(Reload())
    turn_until(scene.loop, lambda: scene.desk.pending)
    client.close()
    turn_until(scene.loop, lambda: not scene.control._clients)
    scene.desk.pending[0][1](Done("nobody hears it"))


def test_who_says_nothing_is_dropped(scene, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    client = scene.connect()
    client.send(REQUESTS.encode(Scale(1))[:-1])
    scene.wait_closed(client)


def test_who_reads_nothing_is_dropped(scene, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    scene.ask(Scale(1_000_000))
    turn_until(scene.loop, lambda: scene.control.requests)
    turn_until(scene.loop, lambda: not scene.control._clients)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", bytes(4), b"\0\0\0\2x{"])
def test_who_talks_nonsense_is_dropped_and_counted(scene, sent):
    client = scene.connect()
    client.send(sent)
    scene.wait_closed(client)
    assert scene.control.refused == 1


def test_who_does_not_wait_for_an_answer_is_dropped(scene):
    client = scene.connect()
    client.send(REQUESTS.encode(Reload()) + REQUESTS.encode(Reload()))
    scene.wait_closed(client)
    assert scene.desk.pending == []


def board_of(scene: Scene, client: socket.socket) -> int:
    """The descriptor that came with the answer to `Watch`."""
    came: list[tuple[bytes, list[int]]] = []

    def look() -> bool:
        try:
            data, ancillary, _, _ = client.recvmsg(4096, socket.CMSG_SPACE(16))
        except BlockingIOError:
            return False
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        came.append((data, fds.tolist()))
        return True

    turn_until(scene.loop, look)
    ((data, (fd,)),) = came
    assert ANSWERS.take_untrusted(bytearray(data)) == Board()
    return fd


def test_a_watcher_gets_the_board_and_stays(scene, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    client = scene.ask(Watch())
    fd = board_of(scene, client)
    assert os.path.sameopenfile(fd, scene.desk.board) or os.fstat(fd) == os.fstat(scene.desk.board)
    os.close(fd)
    for _ in range(3):
        scene.loop.turn(0.02)
    assert scene.desk.watchers == 1
    client.send(REQUESTS.encode(Watch()))  # as often as it likes
    os.close(board_of(scene, client))
    assert scene.desk.watchers == 1
    client.close()
    turn_until(scene.loop, lambda: scene.desk.watchers == 0)


def test_watchers_leave_room_for_orders(scene):
    watchers = [scene.ask(Watch()) for _ in range(MAX_WATCHERS)]
    for watcher in watchers:
        os.close(board_of(scene, watcher))
    assert scene.answer(scene.ask(Watch())).text == f"{MAX_WATCHERS} others watch already"
    assert scene.answer(scene.ask(Scale(1))) == Done("x")


def test_too_many_clients_wait_for_their_turn(scene):
    first = [scene.ask(Reload()) for _ in range(MAX_CLIENTS)]
    turn_until(scene.loop, lambda: len(scene.desk.pending) == MAX_CLIENTS)
    late = scene.ask(Scale(2))
    for _ in range(3):
        scene.loop.turn(0)
    assert len(scene.control._clients) == MAX_CLIENTS
    first[0].close()
    assert scene.answer(late) == Done("xx")


# The socket


def test_a_socket_that_was_asked_for_has_to_open(tmp_path):
    with pytest.raises(StartError, match="create the directory"):
        open_listeners(AdminConfig(control_socket=str(tmp_path / "no" / "x.sock")), UnixAccess())


def test_without_one_that_was_asked_for_the_server_starts_anyhow(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "file"))
    assert not list(open_listeners(AdminConfig(), UnixAccess()))
    assert "no control socket, so no `asgiri ctl`: " in caplog.text


def test_it_can_be_switched_off():
    assert not list(open_listeners(AdminConfig(control_socket="off"), UnixAccess()))


def test_sockets_of_masters_that_were_killed_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    for name in ("asgiri-2147483646.sock", "asgiri-1.sock", "other"):
        (tmp_path / name).touch()
    listeners = open_listeners(AdminConfig(), UnixAccess())
    listeners.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asgiri-1.sock", "other"]


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_the_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch, caplog):
    os.chown(tmp_path, 4712, -1)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert not list(open_listeners(AdminConfig(), UnixAccess()))
    assert "is somebody else's; name another one by --control-socket" in caplog.text

"""The whole set: what a configuration opens, what a service manager passed, all or nothing."""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys

import pytest

from asgiri.config import ListenConfig
from asgiri.errors import StartError
from asgiri.master.binding import UnixAccess
from asgiri.master.kept import NAME as KEPT_NAME
from asgiri.master.listeners import (
    MAX_LISTENERS,
    InheritedSocket,
    Listeners,
    inherited_sockets,
    open_listeners,
)


@pytest.fixture
def opening():
    made: list[Listeners] = []

    def open_with(*binds: str, quic: bool = False, inherited=(), **options) -> Listeners:
        listen = ListenConfig(bind=binds or ("127.0.0.1:0",), **options)
        listeners = open_listeners(listen, quic=quic, inherited=inherited, unix_access=UnixAccess())
        made.append(listeners)
        return listeners

    yield open_with
    for listeners in made:
        listeners.close()


def kinds(listeners: Listeners) -> list[str]:
    return [listener.kind for listener in listeners]


def passed(kind: socket.SocketKind, name: str = "") -> InheritedSocket:
    with socket.socket(socket.AF_INET, kind) as bound:
        bound.bind(("127.0.0.1", 0))
        return InheritedSocket(os.dup(bound.fileno()), name)


def test_several_binds_are_numbered_in_order(opening, tmp_path):
    listeners = opening("127.0.0.1:0", f"unix:{tmp_path}/a.sock", "127.0.0.1:0", quic=True)
    assert kinds(listeners) == ["tcp", "udp", "unix", "tcp", "udp"]
    assert [listener.index for listener in listeners] == [0, 1, 2, 3, 4]
    assert len(listeners) == 5
    assert [listener.index for listener in listeners.datagrams] == [1, 4]
    assert [listener.index for listener in listeners.streams] == [0, 2, 3]


def test_quic_is_off_unless_wanted(opening):
    assert kinds(opening("127.0.0.1:0")) == ["tcp"]


def test_quic_bind_replaces_the_twins(opening):
    listeners = opening("127.0.0.1:0", quic=True, quic_bind=("127.0.0.1:0",))
    assert kinds(listeners) == ["tcp", "udp"]


@pytest.mark.linux
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the length of a queue")
def test_backlog_is_the_length_of_the_queue(opening):
    (listener,) = opening("127.0.0.1:0", backlog=7)
    # struct tcp_info: eight octets, then numbers; of a listener tcpi_sacked is its backlog.
    information = listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert struct.unpack_from("=8x6I", information)[5] == 7


def test_insecure_bind_has_no_quic_and_no_tls(opening):
    listeners = opening("127.0.0.1:0", quic=True, insecure_bind=("127.0.0.1:0",))
    assert kinds(listeners) == ["tcp", "udp", "tcp"]
    infos = [listener.info(tls=True) for listener in listeners]
    assert [info.tls for info in infos] == [True, True, False]
    assert [info.insecure for info in infos] == [False, False, True]
    assert [listener.info(tls=False).tls for listener in listeners] == [False, True, False]


def test_failure_in_the_middle_leaves_nothing_open(tmp_path):
    before = set(os.listdir("/dev/fd"))
    path = tmp_path / "a.sock"
    with pytest.raises(StartError):
        open_listeners(
            ListenConfig(bind=("127.0.0.1:0", f"unix:{path}", "192.0.2.1:0")),
            quic=True,
            unix_access=UnixAccess(),
        )
    assert not path.exists()
    assert set(os.listdir("/dev/fd")) == before


def test_quic_without_a_udp_port_says_how_to_get_one(tmp_path):
    with pytest.raises(StartError, match="--quic-bind HOST:PORT"):
        open_listeners(
            ListenConfig(bind=(f"unix:{tmp_path}/a.sock",)), quic=True, unix_access=UnixAccess()
        )


def test_close_may_be_repeated(opening):
    listeners = opening("127.0.0.1:0", quic=True)
    listeners.close()
    listeners.close()
    assert all(listener.socket.fileno() == -1 for listener in listeners)


def test_more_listeners_than_an_octet_can_number_are_refused(tmp_path):
    binds = tuple(f"unix:{tmp_path}/{number}" for number in range(MAX_LISTENERS + 1))
    with pytest.raises(StartError, match="more than 256 listening sockets"):
        open_listeners(ListenConfig(bind=binds), quic=False, unix_access=UnixAccess())
    assert os.listdir(tmp_path) == []


# Inherited sockets


def test_fd_bind_takes_an_open_socket(opening):
    tcp, udp = passed(socket.SOCK_STREAM), passed(socket.SOCK_DGRAM)
    listeners = opening(f"fd://{tcp.fd}", quic=True, quic_bind=(f"fd://{udp.fd}",))
    assert kinds(listeners) == ["tcp", "udp"]


def test_fd_of_the_wrong_kind_names_the_right_option(opening):
    with pytest.raises(StartError, match="give it to --quic-bind"):
        opening(f"fd://{passed(socket.SOCK_DGRAM).fd}")
    with pytest.raises(StartError, match="give it to --bind"):
        opening(quic=True, quic_bind=(f"fd://{passed(socket.SOCK_STREAM).fd}",))


def test_sockets_of_the_service_manager_replace_bind(opening):
    web, quic = passed(socket.SOCK_STREAM, "web"), passed(socket.SOCK_DGRAM, "quic")
    listeners = opening("192.0.2.1:1", quic=True, inherited=[web, quic])
    assert [(listener.kind, listener.name) for listener in listeners] == [
        ("tcp", "web"),
        ("udp", "quic"),
    ]
    assert all(listener.inherited for listener in listeners)


def test_inherited_tcp_alone_gets_its_udp_twin(opening):
    web = passed(socket.SOCK_STREAM)
    insecure = passed(socket.SOCK_STREAM, "insecure")
    listeners = opening(quic=True, inherited=[web, insecure])
    assert kinds(listeners) == ["tcp", "tcp", "udp"]
    tcp, _, udp = listeners
    assert udp.port == tcp.port


def test_inherited_udp_alone_leaves_bind_to_tcp(opening):
    listeners = opening("127.0.0.1:0", quic=True, inherited=[passed(socket.SOCK_DGRAM)])
    assert kinds(listeners) == ["udp", "tcp"]


def test_inherited_udp_without_http3_is_closed_with_a_warning(opening, caplog):
    caplog.set_level(logging.WARNING, logger="asgiri.master")
    udp = passed(socket.SOCK_DGRAM)
    assert kinds(opening(inherited=[udp])) == ["tcp"]
    assert f"fd://{udp.fd} is a UDP socket, but HTTP/3 is off" in caplog.text
    with pytest.raises(OSError):
        os.fstat(udp.fd)


def test_what_was_kept_is_bound_and_what_nobody_wants_is_closed(opening, caplog):
    caplog.set_level(logging.INFO, logger="asgiri.master")
    wanted, other = passed(socket.SOCK_STREAM, KEPT_NAME), passed(socket.SOCK_DGRAM, KEPT_NAME)
    inode = os.fstat(wanted.fd).st_ino
    with socket.socket(fileno=os.dup(wanted.fd)) as bound:
        port = bound.getsockname()[1]
    [listener] = opening(f"127.0.0.1:{port}", inherited=[wanted, other])
    assert os.fstat(listener.fileno()).st_ino == inode
    assert not listener.inherited
    assert "sockets of an earlier configuration, closed: 1" in caplog.text
    with pytest.raises(OSError):
        os.fstat(other.fd)


def test_the_kept_twin_of_an_inherited_port_is_taken(opening):
    web = passed(socket.SOCK_STREAM, "web")
    with (
        socket.socket(fileno=os.dup(web.fd)) as bound,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(bound.getsockname())
        twin = InheritedSocket(os.dup(udp.fileno()), KEPT_NAME)
        tcp, kept = opening(quic=True, inherited=[web, twin])
        assert (tcp.name, kept.kind, kept.port) == ("web", "udp", tcp.port)


def test_listen_fds_are_taken_with_their_names_and_leave_the_environment():
    environ = {
        "LISTEN_PID": "4711",
        "LISTEN_FDS": "3",
        "LISTEN_FDNAMES": "web:insecure",
        "LISTEN_PIDFDID": "1",
        "HOME": "/",
    }
    assert inherited_sockets(environ, 4711) == [
        InheritedSocket(3, "web"),
        InheritedSocket(4, "insecure"),
        InheritedSocket(5, ""),
    ]
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "12"}]
)
def test_listen_fds_of_another_process_are_not_ours(environ):
    assert inherited_sockets(environ, 4711) == []
    assert environ == {}


@pytest.mark.parametrize("count", ["-1", "many", "1000000000"])
def test_nonsense_in_listen_fds_is_refused(count):
    with pytest.raises(StartError, match="must be the number of sockets passed"):
        inherited_sockets({"LISTEN_FDS": count, "LISTEN_PID": "1"}, 1)

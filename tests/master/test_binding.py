"""Single sockets: real ports and paths, and every way in which the system refuses them."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import subprocess
import sys

import pytest

from asgiri.errors import StartError
from asgiri.master.binding import (
    IP_PKTINFO,
    UDP_BUFFER_SIZE,
    Listener,
    UnixAccess,
    adopt,
    bind_port,
    bind_unix,
    tune_udp,
)

ACCESS = UnixAccess()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
needs_user = pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="takes root to become somebody else"
)


@pytest.fixture
def opened():
    listeners: list[Listener] = []
    yield listeners
    for listener in listeners:
        listener.close()


def one_line(info: pytest.ExceptionInfo[StartError]) -> str:
    text = str(info.value)
    assert "\n" not in text
    return text


# TCP and UDP


def test_port_zero_gives_tcp_and_udp_the_same_number(opened):
    opened += bind_port("127.0.0.1", 0, ("tcp", "udp"), 16)
    assert [listener.kind for listener in opened] == ["tcp", "udp"]
    assert opened[0].port == opened[1].port > 0
    with socket.create_connection(("127.0.0.1", opened[0].port), timeout=5):
        pass


def test_port_zero_is_tried_again_when_the_udp_twin_is_taken(opened, monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        clash = taken.getsockname()[1]
        original = socket.socket.bind
        tries = []

        def bind(self: socket.socket, address):
            # The kernel chooses; make it choose the taken one first.
            if self.type == socket.SOCK_STREAM:
                tries.append(address[1])
                address = (address[0], clash if len(tries) == 1 else 0)
            return original(self, address)

        class Socket(socket.socket):
            pass

        Socket.bind = bind
        monkeypatch.setattr(socket, "socket", Socket)
        opened += bind_port("127.0.0.1", 0, ("tcp", "udp"), 16)
    assert tries == [0, 0]
    assert opened[0].port == opened[1].port != clash


@needs_ipv6
def test_an_empty_host_binds_both_families_separately(opened):
    opened += bind_port("", 0, ("tcp", "udp"), 16)
    assert [(listener.kind, listener.host) for listener in opened] == [
        ("tcp", "0.0.0.0"),
        ("tcp", "::"),
        ("udp", "0.0.0.0"),
        ("udp", "::"),
    ]
    assert len({listener.port for listener in opened}) == 1
    assert all(listener.wildcard for listener in opened)
    assert opened[1].socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    assert str(opened[1]) == f"[::]:{opened[0].port}"


def test_a_machine_without_ipv6_still_binds_an_empty_host(opened, monkeypatch):
    class Socket(socket.socket):
        def __init__(self, family=-1, *rest, **named):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *rest, **named)

    monkeypatch.setattr(socket, "socket", Socket)
    opened += bind_port("", 0, ("tcp", "udp"), 16)
    assert [listener.host for listener in opened] == ["0.0.0.0", "0.0.0.0"]
    with pytest.raises(StartError, match="no IPv6; bind an IPv4 address"):
        bind_port("::1", 0, ("tcp",), 16)


def test_port_in_use_names_who_to_ask(opened):
    opened += bind_port("127.0.0.1", 0, ("tcp", "udp"), 16)
    port = opened[0].port
    with pytest.raises(StartError) as info:
        bind_port("127.0.0.1", port, ("tcp",), 16)
    assert one_line(info) == (
        f"cannot bind 127.0.0.1:{port} (tcp): Address already in use;"
        f" see who has it with: ss -ltnp 'sport = :{port}'"
    )
    with pytest.raises(StartError, match="ss -lunp"):
        bind_port("127.0.0.1", port, ("udp",), 16)


def test_a_udp_port_in_use_is_named_as_such_and_gives_the_tcp_port_back(opened):
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            with pytest.raises(StartError) as caught:
                bind_port("127.0.0.1", port, ("tcp", "udp"), 16)
        if "(tcp)" not in str(caught.value):  # of another process, by chance
            break
    assert re.search(r"\(udp\): .*ss -lunp", str(caught.value))
    opened += bind_port("127.0.0.1", port, ("tcp", "udp"), 16)


@needs_user
def test_privileged_port_names_the_ways_to_get_it(monkeypatch):
    class Socket(socket.socket):
        def bind(self, address):  # a container may let everybody bind every port
            if address[1] < 1024:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(StartError) as info:
        bind_port("127.0.0.1", 80, ("tcp",), 16)
    text = one_line(info)
    assert text.startswith("cannot bind 127.0.0.1:80 (tcp): Permission denied; ports below 1024")
    assert "CAP_NET_BIND_SERVICE" in text


def test_foreign_address_and_bad_name_are_told_apart():
    with pytest.raises(StartError, match="this machine has no such address") as info:
        bind_port("192.0.2.1", 0, ("tcp",), 16)
    one_line(info)
    with pytest.raises(StartError, match="use an address of this machine") as info:
        bind_port("no-such-host.invalid", 8000, ("tcp",), 16)
    one_line(info)
    with pytest.raises(StartError, match="not a host name"):
        bind_port("a" * 64 + ".example", 8000, ("tcp",), 16)


def test_accepted_sockets_inherit_nodelay_and_nothing_is_inheritable(opened):
    opened += bind_port("127.0.0.1", 0, ("tcp",), 16)
    listener = opened[0].socket
    assert not listener.getblocking()
    assert not os.get_inheritable(listener.fileno())
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    with socket.create_connection(listener.getsockname(), timeout=5):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            if sys.platform == "linux":
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.linux
@pytest.mark.skipif(sys.platform != "linux", reason="socket options of Linux")
def test_udp_options(opened):
    opened += bind_port("127.0.0.1", 0, ("udp",), 16)
    opened += bind_port("0.0.0.0", 0, ("udp",), 16)
    concrete, wildcard = opened
    clamped = tune_udp(concrete)
    assert tune_udp(wildcard) == clamped
    granted = concrete.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert (granted < 2 * UDP_BUFFER_SIZE) == ("net.core.rmem_max" in clamped)
    assert concrete.socket.getsockopt(socket.IPPROTO_IP, 10) == 3
    assert not concrete.socket.getsockopt(socket.IPPROTO_IP, IP_PKTINFO)
    assert wildcard.socket.getsockopt(socket.IPPROTO_IP, IP_PKTINFO)
    assert not concrete.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


@pytest.mark.linux
@needs_user
def test_clamped_udp_buffers_name_the_sysctl(opened, monkeypatch):
    class Socket(socket.socket):
        def setsockopt(self, level, option, value):
            if option in (32, 33):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            if option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                value = min(value, 212992)
            super().setsockopt(level, option, value)

    monkeypatch.setattr(socket, "socket", Socket)
    opened += bind_port("127.0.0.1", 0, ("udp",), 16)
    assert tune_udp(opened[0]) == {"net.core.rmem_max", "net.core.wmem_max"}


@needs_ipv6
@pytest.mark.skipif(sys.platform != "linux", reason="socket options of Linux")
def test_udp_options_of_an_ipv6_wildcard(opened):
    opened += bind_port("::", 0, ("udp",), 16)
    tune_udp(opened[0])
    bound = opened[0].socket
    assert bound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO)
    assert bound.getsockopt(socket.IPPROTO_IPV6, 23) == 3


# Unix sockets


def test_unix_socket_answers_has_its_mode_and_goes_at_the_end(tmp_path):
    path = str(tmp_path / "a.sock")
    umask = os.umask(0o077)
    try:
        listener = bind_unix(path, 16, UnixAccess(mode=0o660))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    assert str(listener) == f"unix:{path}"
    assert not listener.wildcard
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    listener.close()
    assert not os.path.exists(path)
    listener.close()


def test_stale_unix_socket_is_replaced(tmp_path):
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    listener = bind_unix(path, 16, ACCESS)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    listener.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_unix_socket_where_somebody_listens_is_left_alone(tmp_path, kind):
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX, kind) as alive:
        alive.bind(path)
        if kind == socket.SOCK_STREAM:
            alive.listen()
        with pytest.raises(StartError, match=r"somebody listens there; see who .*ss -lxp") as info:
            bind_unix(path, 16, ACCESS)
        one_line(info)
        assert os.path.exists(path)


def test_unix_socket_with_a_full_backlog_counts_as_alive(tmp_path):
    path = str(tmp_path / "a.sock")
    clients = []
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(path)
        alive.listen(0)
        try:
            full = 0
            while full == 0:
                clients.append(socket.socket(socket.AF_UNIX))
                clients[-1].setblocking(False)
                full = clients[-1].connect_ex(path)
            assert full == errno.EAGAIN
            with pytest.raises(StartError, match="somebody listens there"):
                bind_unix(path, 16, ACCESS)
        finally:
            for client in clients:
                client.close()


def test_a_file_that_is_no_socket_is_never_removed(tmp_path):
    path = tmp_path / "precious"
    path.write_text("keep me")
    with pytest.raises(StartError, match="exists and is no socket"):
        bind_unix(str(path), 16, ACCESS)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(StartError, match="exists and is no socket"):
        bind_unix(str(link), 16, ACCESS)
    assert path.read_text() == "keep me"


def test_somebody_elses_socket_at_our_path_survives_our_end(tmp_path):
    path = str(tmp_path / "a.sock")
    ours = bind_unix(path, 16, ACCESS)
    os.unlink(path)
    theirs = bind_unix(path, 16, ACCESS)
    ours.close()
    assert os.path.exists(path)
    theirs.close()
    assert not os.path.exists(path)


def test_unix_paths_that_cannot_be(tmp_path):
    with pytest.raises(StartError, match=r"create the directory .*missing") as info:
        bind_unix(str(tmp_path / "missing" / "a.sock"), 16, ACCESS)
    one_line(info)
    with pytest.raises(StartError, match="at most 107 bytes") as info:
        bind_unix(str(tmp_path / ("a" * 200)), 16, ACCESS)
    one_line(info)


@pytest.mark.slow
@needs_user
def test_unix_directory_without_permission_names_the_user(tmp_path):
    tmp_path.chmod(0o755)
    code = """
import os, sys
from asgiri.errors import StartError
from asgiri.master.binding import UnixAccess, bind_unix
os.setuid(65534)
try:
    bind_unix(sys.argv[1], 16, UnixAccess())
except StartError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.sock")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        f"cannot bind unix:{tmp_path}/a.sock: Permission denied;"
        f" uid 65534 must be allowed to write into {tmp_path}\n"
    )


@needs_user
def test_unix_socket_gets_the_owner_that_workers_run_as(tmp_path):
    path = str(tmp_path / "a.sock")
    listener = bind_unix(path, 16, UnixAccess(owner=(65534, 65534)))
    status = os.stat(path)
    assert (status.st_uid, status.st_gid) == (65534, 65534)
    listener.close()


# Sockets of others


def test_adopted_tcp_listener_is_listened_on_and_not_inheritable():
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", 0))
        fd = os.dup(theirs.fileno())
        os.set_inheritable(fd, True)
        listener = adopt(fd, 16, "web")
        assert (listener.kind, listener.port, listener.name) == (
            "tcp",
            theirs.getsockname()[1],
            "web",
        )
        assert listener.inherited
        assert not os.get_inheritable(fd)
        with socket.create_connection(theirs.getsockname(), timeout=5):
            pass
        listener.close()


def test_adopted_unix_listener_keeps_its_file(tmp_path):
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(path)
        theirs.listen()
        listener = adopt(os.dup(theirs.fileno()), 16, "")
        assert str(listener) == f"unix:{path}"
        listener.close()
        assert os.path.exists(path)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux'")
def test_adopted_abstract_unix_listener_is_shown_with_an_at():
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(b"\0asgiri-test-%d" % os.getpid())
        theirs.listen()
        listener = adopt(os.dup(theirs.fileno()), 16, "")
        assert listener.path.startswith("@asgiri-test-")
        listener.close()


def test_adopted_udp_socket_is_for_quic():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
        theirs.bind(("127.0.0.1", 0))
        listener = adopt(os.dup(theirs.fileno()), 16, "")
        assert listener.kind == "udp"
        listener.close()


def test_name_insecure_means_cleartext():
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", 0))
        listener = adopt(os.dup(theirs.fileno()), 16, "insecure")
        assert listener.insecure
        assert not listener.info(tls=True).tls
        listener.close()


def test_descriptors_that_are_no_listeners_are_refused_in_one_line(tmp_path):
    a, b = socket.socketpair()
    with a, b:
        with pytest.raises(StartError, match="is a connection") as info:
            adopt(os.dup(a.fileno()), 16, "")
        one_line(info)
    with (tmp_path / "file").open("w") as file, pytest.raises(StartError, match="open socket"):
        adopt(file.fileno(), 16, "")
    with pytest.raises(StartError, match="fd://54321: Bad file descriptor; pass an open socket"):
        adopt(54321, 16, "")
    unbound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
    with pytest.raises(StartError, match="neither a stream socket nor a bound UDP socket"):
        adopt(unbound, 16, "")
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
    with pytest.raises(StartError, match="pass an IP or a Unix socket"):
        adopt(datagrams, 16, "")

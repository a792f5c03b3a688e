"""The protocol of sd_notify, with the test as the service manager."""

from __future__ import annotations

import os
import socket
import time

import pytest

from asgiri.master.notify import ServiceManager


@pytest.fixture
def manager(tmp_path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(5)
    yield listener
    listener.close()


def told(manager: socket.socket) -> dict[str, str]:
    lines = manager.recv(4096).decode().split("\n")
    return dict(line.split("=", 1) for line in lines)


def service(manager: socket.socket, **environment: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": manager.getsockname(), **environment}, os.getpid())


def test_each_step_is_told(manager):
    ours = service(manager)
    ours.starting(60.0)
    assert told(manager) == {"EXTEND_TIMEOUT_USEC": "70000000", "STATUS": "starting"}
    ours.ready("2 workers")
    assert told(manager) == {"READY": "1", "STATUS": "2 workers"}
    ours.status("3 workers")
    assert told(manager) == {"STATUS": "3 workers"}
    before = time.monotonic()
    ours.reloading(60.0)
    message = told(manager)
    assert message["RELOADING"] == "1"
    assert before <= int(message["MONOTONIC_USEC"]) / 1e6 + 0.001 <= time.monotonic() + 0.001
    ours.stopping(30.0)
    message = told(manager)
    assert (message["STOPPING"], message["EXTEND_TIMEOUT_USEC"]) == ("1", "40000000")
    ours.alive()
    assert told(manager) == {"WATCHDOG": "1"}
    ours.close()
    ours.alive()  # no more


def test_sockets_are_kept_as_far_as_there_is_room(manager, caplog):
    ours = service(manager, FDSTORE="2")
    reading, writing = os.pipe()
    ours.keep("name", [reading, writing])
    assert told(manager) == {"FDSTOREREMOVE": "1", "FDNAME": "name"}
    message, fds, _, _ = socket.recv_fds(manager, 4096, 253)
    assert message == b"FDSTORE=1\nFDNAME=name\nFDPOLL=0"
    assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(reading).st_ino] * 2
    assert not caplog.records
    ours.keep("name", [reading, writing, reading])
    assert "2 of 3 sockets outlive a crash: set FileDescriptorStoreMax=3" in caplog.text
    for fd in (reading, writing, *fds):
        os.close(fd)
    ours.close()


def test_no_more_descriptors_are_sent_at_once_than_the_kernel_takes(manager):
    ours = service(manager, FDSTORE="1000")
    ours.keep("name", [0] * 256)
    told(manager)
    for count in (253, 3):
        _, fds, _, _ = socket.recv_fds(manager, 4096, 253)
        assert len(fds) == count
        for fd in fds:
            os.close(fd)
    assert ours.failures == 0
    ours.close()


@pytest.mark.parametrize("room", ["", "0", "many"])
def test_nothing_is_kept_unless_asked_for(manager, room):
    ours = service(manager, FDSTORE=room)
    ours.keep("name", [0])
    ours.alive()
    assert told(manager) == {"WATCHDOG": "1"}
    ours.close()


def test_a_status_is_one_line(manager):
    ours = service(manager)
    ours.ready("first\nREADY=0")
    assert told(manager) == {"READY": "1", "STATUS": "first READY=0"}
    ours.close()


def test_an_abstract_socket_will_do():
    name = f"asgiri-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(5)
        ours = ServiceManager({"NOTIFY_SOCKET": "@" + name}, os.getpid())
        ours.alive()
        assert told(listener) == {"WATCHDOG": "1"}
        ours.close()


@pytest.mark.parametrize(
    ("pid", "limit", "interval"),
    [
        ("", "4000000", 2.0),
        ("ours", "4000000", 2.0),
        ("1", "4000000", 0.0),
        ("", "", 0.0),
        ("", "soon", 0.0),
    ],
    ids=["for anybody", "for us", "for another", "without", "nonsense"],
)
def test_the_watchdog_is_fed_twice_per_limit(manager, pid, limit, interval):
    pid = pid.replace("ours", str(os.getpid()))
    environment = {"WATCHDOG_USEC": limit, **({"WATCHDOG_PID": pid} if pid else {})}
    ours = service(manager, **environment)
    assert ours.watchdog_interval == interval
    ours.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative"])
def test_without_a_manager_nothing_happens(address):
    ours = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}, os.getpid())
    ours.ready("")
    assert ours.watchdog_interval == 0
    assert ours.failures == 0
    ours.close()


def test_a_manager_that_is_gone_is_counted_and_named_once(tmp_path, caplog):
    ours = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}, os.getpid())
    ours.ready("")
    ours.alive()
    assert ours.failures == 2
    assert len(caplog.records) == 1
    ours.close()

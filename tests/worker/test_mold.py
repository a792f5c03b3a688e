"""What a mold finds that a fork cannot pass on, and its own end; its workers: tests/system."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading

import pytest

from asgiri.ipc.channel import ControlChannel
from asgiri.ipc.messages import (
    Cast,
    Failed,
    Forked,
    ForkFailed,
    Importing,
    Message,
    MoldHello,
    Ready,
    ReopenLogs,
)
from asgiri.worker import mold
from tests.support.worker import make_config
from tests.support.worker_process import PATIENCE, PROJECT

pytestmark = [
    pytest.mark.linux,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


# What is left behind


def test_nothing_is_left_behind_by_an_import_that_opens_nothing():
    before = mold.Inventory.take()
    with open(os.devnull):
        assert mold.describe_leftovers(before) == ""


def test_threads_are_named():
    before = mold.Inventory.take()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="refresher")
    thread.start()
    try:
        text = mold.describe_leftovers(before)
    finally:
        end.set()
        thread.join()
    assert text.startswith("importing the application has left 1 thread (refresher) behind: ")
    assert "--preload" in text
    assert "\n" not in text


def test_event_loops_and_sockets_are_counted():
    before = mold.Inventory.take()
    loop = asyncio.new_event_loop()
    try:
        assert "has left 1 event loop behind" in mold.describe_leftovers(before)
        with socket.socket(), socket.socket():
            text = mold.describe_leftovers(before)
    finally:
        loop.close()
    assert "has left 1 event loop and 2 sockets behind" in text


# A real one, with the test as its master


class MoldProcess:
    def __init__(self, target: str, *, master_pid: int = 0, hello: bool = True) -> None:
        self.control, theirs = ControlChannel.pair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "asgiri.worker.mold", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
        theirs.close()
        if hello:
            config = make_config(app={"target": target}).to_json()
            assert self.control.send(MoldHello(3, config, master_pid or os.getpid()))

    def wait(self, kind: type[Message]) -> Message:
        while True:
            assert select.select([self.control.fileno()], [], [], PATIENCE)[0], "nothing came"
            received = self.control.receive()
            assert received is not None
            assert isinstance(received[0], kind | Importing | Ready), received
            if isinstance(received[0], kind):
                return received[0]

    def cast(self) -> Message:
        """Ask for a worker. It finds that nobody is its master, and ends."""
        ours, theirs = ControlChannel.pair()
        assert self.control.send(Cast(7), [theirs.fileno()])
        theirs.close()
        answer = self.wait(Forked | ForkFailed)
        ours.close()
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.control.close()


@pytest.fixture
def start():
    molds: list[MoldProcess] = []

    def start_one(target: str = "tests.support.apps:app", **options) -> MoldProcess:
        molds.append(MoldProcess(target, **options))
        return molds[-1]

    yield start_one
    for one in molds:
        one.close()


@pytest.mark.slow
class TestProcess:
    def test_it_imports_says_so_and_forks(self, start):
        one = start()
        one.wait(Importing)
        assert one.wait(Ready) == Ready(one.process.pid)
        with open(f"/proc/{one.process.pid}/cmdline", "rb") as file:
            assert file.read().startswith(b"asgiri: mold gen 3 [tests.support.apps:app]")
        answer = one.cast()
        assert isinstance(answer, Forked)
        assert answer.worker_id == 7
        assert answer.pid != one.process.pid
        # What it does not know it passes over, and goes on.
        assert one.control.send(ReopenLogs())
        assert one.control.send(Ready(0))
        assert isinstance(one.cast(), Forked)

    def test_an_import_that_fails_is_told_with_its_traceback(self, start):
        one = start("tests.worker.broken_app:app")
        failed = one.wait(Failed)
        assert failed.stage == "import"
        assert "Traceback (most recent call last)" in failed.traceback
        assert one.process.wait(PATIENCE) == 3

    def test_it_ends_with_its_channel(self, start):
        one = start()
        one.wait(Ready)
        one.control.close()
        assert one.process.wait(PATIENCE) == 0

    def test_it_ends_at_once_when_it_is_told_while_it_imports(self, start):
        one = start("tests.worker.sleeping_app:app")
        one.wait(Importing)
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(PATIENCE) == 0

    def test_it_ends_when_its_master_is_another_process(self, start):
        assert start(master_pid=1).process.wait(PATIENCE) == 0

    def test_it_ends_when_there_is_no_hello(self, start):
        one = start(hello=False)
        one.control.close()
        assert one.process.wait(PATIENCE) == 0

    def test_a_fork_that_the_system_refuses_is_told(self, start):
        one = start()
        one.wait(Ready)
        taken = {int(name) for name in os.listdir(f"/proc/{one.process.pid}/fd")}
        free = next(number for number in range(1000) if number not in taken)
        # Room for the worker's channel, and for nothing more.
        resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (free + 1, free + 1))
        assert one.cast() == ForkFailed(7, "[Errno 24] Too many open files")

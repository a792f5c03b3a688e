"""SIGUSR2: the master's program is exchanged, and nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import asgiri
from asgiri.errors import TakeoverError
from asgiri.master.takeover import STATE_VARIABLE, MasterState, replace_program
from tests.support.client import request
from tests.support.fetch import fetch, http1
from tests.support.http3_client import Http3Connection
from tests.support.load import (
    Http2,
    Http3,
    KeepAlive,
    SecureKeepAlive,
    WebSockets,
    assert_nothing_failed,
    load,
    ports,
    summary,
)
from tests.support.remote_app import remote_apps
from tests.support.server import PROJECT, Server, serve

slow = [pytest.mark.slow, pytest.mark.timeout(300)]
EVERYBODY = (KeepAlive, SecureKeepAlive, Http2, Http3, WebSockets)
DATAGRAMS = 10_000
"""Each second, while the program is exchanged: rubbish, as from a scanner."""


async def upgrade(server: Server, generation: int = 2) -> None:
    """Exchange the program; return when the workers of its reload serve."""
    start = server.log.end
    server.send_signal(signal.SIGUSR2)
    await server.wait_line("upgraded: asgiri .* goes on with the workers", start)
    await server.wait_line(f"reloaded: generation {generation} serves", start)


class Flood:
    """Datagrams that no connection wants."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", ports(server)[1]))
        self._socket.setblocking(False)
        self.sent = 0
        self.stopped = False

    async def run(self) -> None:
        last = time.monotonic()
        while not self.stopped:
            now = time.monotonic()
            # After a stall of this process no more than the rate.
            for _ in range(int(min(now - last, 0.05) * DATAGRAMS)):
                with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                    self._socket.send(b"\x40" + os.urandom(40))
                self.sent += 1
            last = now
            await asyncio.sleep(0.002)
        self._socket.close()


class TestUnderLoad:
    pytestmark = slow

    async def test_nothing_fails_and_connections_live_on(self):
        async with serve(
            workers=2, tls=True, http3=True, insecure_bind="127.0.0.1:0", ws_drain="keep"
        ) as server:
            flood = Flood(server)
            flooding = asyncio.create_task(flood.run())
            quic = await Http3Connection.connect("127.0.0.1", ports(server)[1])
            before = (await request(quic, "GET", "/pid")).body
            async with load(server, EVERYBODY) as clients:
                for generation in range(2, 5):
                    start = server.log.end
                    server.send_signal(signal.SIGUSR2)
                    await server.wait_line("upgraded: asgiri", start)
                    if generation == 2:
                        # The new program steers it to the worker that the old one had chosen.
                        assert (await request(quic, "GET", "/pid")).body == before
                        await quic.close()
                    await server.wait_line(f"reloaded: generation {generation} serves", start)
            flood.stopped = True
            await flooding
            print(summary(clients), f"{flood.sent} datagrams")
            assert_nothing_failed(clients)
            assert len(psutil.Process(server.pid).children()) <= 8
            assert server.process.poll() is None


class TestProgram:
    pytestmark = slow

    async def test_a_request_in_flight_ends_normally(self):
        async with (
            serve(workers=2) as server,
            remote_apps() as apps,
            http1(server) as connection,
            http1(server) as idle,
        ):
            assert (await request(idle, "GET", "/hello")).status == 200
            exchange = await connection.start("GET", "/", apps.headers)
            call = await apps.wait_call()
            await call.start_response()
            await upgrade(server)
            assert (await fetch(server, "/pid")).body != b"%d" % call.pid
            await call.send_body(b"late", more=False)
            call.finish()
            assert await exchange.read() == b"late"

    async def test_descriptors_and_children_stay_as_many(self):
        async with serve(workers=2, tls=True, http3=True) as server:
            master = psutil.Process(server.pid)
            count = master.num_fds()
            for generation in range(2, 5):
                await upgrade(server, generation)
                await wait_children(master, 2)
                # A worker is reaped a moment before what belonged to it is closed.
                await wait_until(lambda: master.num_fds() <= count)
            assert "asgiri" in " ".join(master.cmdline())

    async def test_a_worker_that_dies_afterwards_is_reaped_and_replaced(self):
        async with serve(workers=2) as server:
            await upgrade(server)
            pid = server.kill_worker(0)
            await server.wait_replaced(0, pid)
            assert (await fetch(server)).status == 200

    async def test_a_reload_under_way_ends_first(self):
        async with serve(workers=2) as server:
            server.send_signal(signal.SIGHUP)
            await server.wait_line(r"worker\[0\] pid=\d+ gen=2: ready")
            server.send_signal(signal.SIGUSR2)
            await server.wait_line("upgraded: asgiri")
            await server.wait_line("reloaded: generation 3 serves")
            text = server.log.text
            assert text.index("reloaded: generation 2 serves") < text.index("upgraded: asgiri")

    async def test_the_pid_file_stays(self, tmp_path):
        path = tmp_path / "pid"
        async with serve(workers=1, pidfile=path) as server:
            await upgrade(server)
            assert int(path.read_text()) == server.pid
        assert not path.exists()

    async def test_a_broken_new_version_is_refused(self, tmp_path):
        package = tmp_path / "asgiri"
        shutil.copytree(Path(asgiri.__file__).parent, package)
        environment = {"PYTHONPATH": f"{tmp_path}:{PROJECT}"}
        async with serve(workers=2, directory=tmp_path, environment=environment) as server:
            pids = list(server.worker_pids)
            async with load(server, [KeepAlive]) as clients:
                steering = package / "master" / "steering.py"
                whole = steering.read_text()
                steering.write_text(whole + "\nraise RuntimeError('this version is broken')\n")
                start = server.log.end
                server.send_signal(signal.SIGUSR2)
                await server.wait_line("upgrade refused, everything stays as it is", start)
                await server.wait_line("this version is broken", start)
                assert server.worker_pids == pids
                # What is repaired is taken.
                steering.write_text(whole)
                (package / "__init__.py").write_text(
                    (package / "__init__.py").read_text().replace(asgiri.__version__, "99.1")
                )
                server.send_signal(signal.SIGUSR2)
                await server.wait_line("upgraded: asgiri 99.1 goes on")
            server.allowed_in_log.append("this version is broken")
            assert_nothing_failed(clients)

    async def test_a_program_that_cannot_take_over_after_all_serves_who_waits(self, tmp_path):
        """All connections end, but nobody is refused: the sockets are passed on."""
        package = tmp_path / "asgiri"
        shutil.copytree(Path(asgiri.__file__).parent, package)
        environment = {"PYTHONPATH": f"{tmp_path}:{PROJECT}"}
        async with serve(
            workers=2, directory=tmp_path, environment=environment, tls=True, http3=True
        ) as server:
            addresses = server.addresses(), server.addresses("udp")
            fleet = package / "master" / "fleet.py"
            whole = fleet.read_text()
            fleet.write_text(
                whole.replace("self._started = True\n", "raise LookupError('not these')\n", 1)
            )
            server.send_signal(signal.SIGUSR2)
            await server.wait_line("cannot take over, all connections end: not these")
            assert (await fetch(server)).status == 200
            await server.wait_line("listening on", server.log.text.index("not these"))
            assert (server.addresses(), server.addresses("udp")) == addresses
            assert len(psutil.Process(server.pid).children()) == 2

    async def test_an_unreadable_state_means_a_cold_start(self):
        # Standard input, which is empty.
        async with serve(workers=1, environment={STATE_VARIABLE: "0"}) as server:
            assert "cannot take over, all connections end" in server.log.text
            assert (await fetch(server)).status == 200

    async def test_a_stop_during_the_check_stops(self):
        async with serve(workers=1) as server:
            server.send_signal(signal.SIGUSR2)
            await server.wait_line("upgrade: checking the new program")
            server.send_signal(signal.SIGTERM)
            assert await server.wait_exit() == 0


async def wait_children(process: psutil.Process, count: int) -> None:
    await wait_until(lambda: len(process.children()) == count)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(40):
        while not condition():
            await asyncio.sleep(0.05)


def test_a_program_that_cannot_be_executed_changes_nothing():
    reading, writing = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    descriptors = set(os.listdir("/proc/self/fd"))
    called = []
    with pytest.raises(OSError):
        replace_program(["/nonexistent"], b"state", [reading], lambda: called.append(1))
    assert called
    assert not os.get_inheritable(reading)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert set(os.listdir("/proc/self/fd")) == descriptors
    os.close(reading)
    os.close(writing)


STATE = MasterState(
    secrets=None,
    tls=False,
    listeners=[],
    workers=[{"worker_id": 1}],
    supervisor={"roster": {"workers": [{"worker_id": 1}]}},
    acceptor={},
    begun=[("aa", 1)],
)


def test_a_state_survives_its_encoding():
    state = MasterState.decode(STATE.encode())
    assert state.workers == STATE.workers
    assert [tuple(pair) for pair in state.begun] == STATE.begun


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 1}',
        STATE.encode().replace(b'"format":1', b'"format":2'),
        STATE.encode().replace(b'"workers":[{"worker_id":1}]', b'"workers":[]', 1),
        STATE.encode()[:-3],
    ],
)
def test_a_state_that_is_not_ours_is_refused(document):
    with pytest.raises(TakeoverError):
        MasterState.decode(document)

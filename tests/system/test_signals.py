"""Signals to the master, and its death."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time

import psutil
import pytest

from tests.support.client import read_response
from tests.support.descriptors import memory_files, open_files
from tests.support.fetch import fetch, http1, wait_refusing
from tests.support.remote_app import remote_apps
from tests.support.server import PATIENCE, serve

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("to", ["master", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_lets_requests_finish(number: int, to: str):
    """systemd sends SIGTERM to the whole group unless it is told otherwise, a terminal SIGINT."""
    async with serve() as server, remote_apps() as apps, http1(server) as connection:
        exchange = await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        await call.start_response()
        await call.send_body(b"before ")
        assert await exchange.read() == b"before "
        if to == "group":
            os.killpg(server.pid, number)
        else:
            server.send_signal(number)
        await wait_refusing(server)
        await call.send_body(b"after", more=False)
        call.finish()
        assert await exchange.read() == b"after"
        assert await exchange.read() == b""
        assert await server.wait_exit() == 0
    assert "the master is gone" not in server.log.text


async def test_an_idle_connection_does_not_hold_up_a_stop():
    async with serve() as server, http1(server) as connection:
        response = await read_response(await connection.start("GET", "/hello"))
        assert response.status == 200
        server.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        await connection.wait_closed()
        assert await server.wait_exit() == 0
        assert time.monotonic() - begin < 5


async def test_graceful_timeout_bounds_a_stop():
    async with (
        serve(graceful_timeout=0.5) as server,
        remote_apps() as apps,
        http1(server) as connection,
    ):
        exchange = await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        await call.receive()
        server.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert await server.wait_exit() == 0
        assert time.monotonic() - begin < 8
        # Nothing of the response had been sent: the client is told, rather than cut off.
        assert (await exchange.head()).status == 503


async def test_a_second_signal_stops_at_once():
    async with (
        serve(graceful_timeout=60) as server,
        remote_apps() as apps,
        http1(server) as connection,
    ):
        await connection.start("GET", "/", apps.headers)
        await apps.wait_call()
        server.send_signal(signal.SIGTERM)
        await wait_refusing(server)
        begin = time.monotonic()
        server.send_signal(signal.SIGTERM)
        await server.wait_exit()
        assert time.monotonic() - begin < 8


async def test_the_application_is_told_to_shut_down(tmp_path):
    notes = tmp_path / "lifespan"
    async with serve(environment={"TEST_LIFESPAN_FILE": str(notes)}) as server:
        pids = set(server.worker_pids)
        server.send_signal(signal.SIGTERM)
        assert await server.wait_exit() == 0
    events = re.findall(r"(\w+) (\d+)", notes.read_text())
    assert {int(pid) for event, pid in events if event == "startup"} == pids
    assert {int(pid) for event, pid in events if event == "shutdown"} == pids


async def test_workers_do_not_outlive_a_killed_master():
    async with serve(workers=3) as server:
        server.kill_master()
        begin = time.monotonic()
        await server.wait_workers_gone(6)
        assert time.monotonic() - begin < 6


async def test_a_request_in_flight_outlives_a_killed_master_for_a_moment():
    async with serve() as server, remote_apps() as apps, http1(server) as connection:
        exchange = await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        server.kill_master()
        await server.wait_exit()
        await call.respond(200, b"still here")
        call.finish()
        assert (await read_response(exchange)).body == b"still here"
        await server.wait_workers_gone(6)


BLOCKED = """
import ctypes, os, pathlib, time

mutex = ctypes.create_string_buffer(64)

def sleep():
    time.sleep(3600)

def compute():
    while True:
        pass

def keep_the_lock():
    # The second call waits for ever; no signal interrupts it, and no handler of Python's runs.
    while True:
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)

told = pathlib.Path(__file__).parent / "told"
if os.environ["ASGIRI_GENERATION"] != "1":
    told.touch()
    sleep()

async def app(scope, receive, send):
    assert scope["type"] == "http"
    told.touch()
    globals()[scope["path"][1:]]()
"""


async def test_workers_blocked_when_the_master_dies_go_as_well(tmp_path):
    """In Python, in C code, in an import."""
    (tmp_path / "blocked.py").write_text(BLOCKED)
    told = tmp_path / "told"

    async def wait_told():
        async with asyncio.timeout(PATIENCE):
            while not told.exists():
                await asyncio.sleep(0.01)
        told.unlink()

    async with serve("blocked:app", workers=3, app_dir=tmp_path) as server:
        blocking = []
        for path in ("/sleep", "/compute", "/keep_the_lock"):
            blocking.append(asyncio.create_task(fetch(server, path)))
            await wait_told()
        server.send_signal(signal.SIGHUP)
        await wait_told()
        assert len(server.live_pids()) == 5
        server.kill_master()
        await server.wait_workers_gone(6)
        await asyncio.wait(blocking)
        assert all(task.exception() for task in blocking)


async def test_processes_say_what_they_are():
    async with serve(workers=2) as server:
        assert title(server.pid).startswith("asgiri: master [tests.support.apps:app]")
        for slot, pid in server.workers.items():
            pattern = rf"asgiri: worker {slot} gen \d+ \[tests\.support\.apps:app\]"
            assert re.match(pattern, title(pid)), title(pid)


def title(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode()


async def test_nothing_is_inherited_that_is_not_needed():
    """A worker has no descriptor of its siblings: their end must be seen by the master alone."""
    async with serve(workers=2, tls=True, http3=True) as server:
        await fetch(server)
        for pid in server.worker_pids:
            assert len(memory_files(pid)) == 1, open_files(pid)
            listening = psutil.Process(pid).net_connections("tcp")
            assert psutil.CONN_LISTEN not in {connection.status for connection in listening}


async def test_sigquit_stops_at_once():
    async with (
        serve(graceful_timeout=60) as server,
        remote_apps() as apps,
        http1(server) as connection,
    ):
        await connection.start("GET", "/", apps.headers)
        await apps.wait_call()
        begin = time.monotonic()
        server.send_signal(signal.SIGQUIT)
        assert await server.wait_exit() == 0
        assert time.monotonic() - begin < 8


async def test_sigttin_and_sigttou_change_the_number_of_workers():
    async with serve(workers=1) as server:
        master = psutil.Process(server.pid)
        first = server.workers[0]
        server.send_signal(signal.SIGTTIN)
        await server.wait_line(r"worker\[1\] pid=\d+.*: ready")
        second = server.workers[1]
        pids: set[int] = set()
        while pids != {first, second}:
            responses = await asyncio.gather(*(fetch(server, "/pid") for _ in range(8)))
            pids |= {int(response.body) for response in responses}
        server.send_signal(signal.SIGTTOU)
        await server.wait_line(rf"worker\[1\] pid={second}.*exited with status 0")
        # The last one stays.
        server.send_signal(signal.SIGTTOU)
        assert int((await fetch(server, "/pid")).body) == first
        assert [child.pid for child in master.children()] == [first]


async def test_sigwinch_lets_the_workers_of_a_daemon_go_and_sighup_brings_them_back():
    async with serve(workers=2) as server, http1(server) as connection:
        server.send_signal(signal.SIGWINCH)
        await server.wait_line("SIGWINCH: the workers finish what they have")
        for slot in (0, 1):
            await server.wait_line(rf"worker\[{slot}\] pid=\d+ gen=1: exited with status 0")
        # The listeners stay open: who comes waits.
        exchange = await connection.start("GET", "/hello")
        waiting = asyncio.create_task(read_response(exchange))
        server.send_signal(signal.SIGHUP)
        assert (await waiting).status == 200
        assert set(server.workers) == {0, 1}


async def test_sigusr1_reopens_the_log_files(tmp_path):
    access, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    async with serve(workers=1, access_log=True, access_logfile=access) as server:
        await fetch(server, "/hello?first")
        await wait_text(access, "first")
        access.rename(moved)
        server.send_signal(signal.SIGUSR1)
        await wait_text(access, "")
        await fetch(server, "/hello?second")
        await wait_text(access, "second")
    assert "first" not in access.read_text()
    assert "second" not in moved.read_text()


async def wait_text(path, text: str) -> None:
    """The file is there and holds this."""
    async with asyncio.timeout(PATIENCE):
        while not path.exists() or text not in path.read_text():
            await asyncio.sleep(0.01)

"""Processes that are killed, stopped or broken at any step, and full rings.

`FAULTS` says which test stands for each way to fail; most are elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.admin import Admin
from tests.support.client import ExchangeFailed, read_response, request
from tests.support.fetch import fetch, http1
from tests.support.http3_client import Http3Connection
from tests.support.load import (
    Client,
    Http2,
    Http3,
    KeepAlive,
    SecureKeepAlive,
    WebSockets,
    assert_nothing_failed,
    load,
)
from tests.support.remote_app import remote_apps
from tests.support.server import PROJECT, Server, serve
from tests.system.fault_table import FAULTS

EVERYBODY = (KeepAlive, SecureKeepAlive, Http2, Http3, WebSockets)
STOPPED = 0.3
"""Seconds."""


def test_each_fault_has_its_tests():
    sources: dict[str, str] = {}
    for fault, tests in FAULTS.items():
        assert tests, fault
        for test in tests:
            file, name = test.split("::")
            text = sources.setdefault(file, (PROJECT / "tests" / file).read_text())
            assert re.search(rf"def {name}\(", text), f"{fault}: no {test}"


# Stopped


async def wait_progress(clients: list[Client]) -> None:
    goals = [client.served + 2 for client in clients]
    async with asyncio.timeout(30):
        while any(c.served < goal for c, goal in zip(clients, goals, strict=True)):
            await asyncio.sleep(0.01)


async def stop_for_a_while(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(STOPPED)
    os.kill(pid, signal.SIGCONT)


async def wait_candidate(server: Server, known: set[int]) -> int:
    """A process of the next generation, as soon as there is one."""
    while True:
        for child in psutil.Process(server.pid).children():
            if child.pid not in known:
                return child.pid
        await asyncio.sleep(0.005)


@pytest.mark.slow
async def test_whoever_is_stopped_for_a_moment_at_any_step_costs_nothing_but_time():
    async with serve(
        tls=True, http3=True, insecure_bind="127.0.0.1:0", admin="127.0.0.1:0"
    ) as server:
        admin = await server.wait_line(r"admin pid=(\d+) gen=\d+: ready")
        async with load(server, EVERYBODY) as clients:
            for pid in (server.pid, int(admin[1]), server.workers[0]):
                await stop_for_a_while(pid)
                await wait_progress(clients)
            for generation, who in enumerate(["master", "worker", "candidate"], start=2):
                known = {child.pid for child in psutil.Process(server.pid).children()}
                start = server.log.end
                server.send_signal(signal.SIGHUP)
                candidate = await wait_candidate(server, known)
                pids = {"master": server.pid, "worker": server.workers[0], "candidate": candidate}
                await stop_for_a_while(pids[who])
                await server.wait_line(f"reloaded: generation {generation} serves", start)
                await wait_progress(clients)
        assert_nothing_failed(clients)


# Killed


@pytest.mark.slow
async def test_a_candidate_that_is_killed_ends_its_reload_and_nothing_else():
    async with serve(tls=True, http3=True, insecure_bind="127.0.0.1:0") as server:
        pids = set(server.worker_pids)
        async with load(server, EVERYBODY) as clients:
            start = server.log.end
            server.send_signal(signal.SIGHUP)
            os.kill(await wait_candidate(server, pids), signal.SIGKILL)
            await server.wait_line("reload failed, the old workers stay: .*SIGKILL", start)
            assert set(server.worker_pids) == pids
            await wait_progress(clients)
        assert_nothing_failed(clients)


@pytest.mark.slow
async def test_a_worker_that_is_killed_while_it_drains_takes_only_its_own_along():
    async with (
        serve(workers=1) as server,
        remote_apps() as apps,
        http1(server) as connection,
    ):
        exchange = await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        server.send_signal(signal.SIGHUP)
        await server.wait_line("reloaded: generation 2 serves")
        (fresh,) = server.worker_pids
        assert call.pid != fresh
        os.kill(call.pid, signal.SIGKILL)
        with pytest.raises(ExchangeFailed):
            await read_response(exchange)
        await server.wait_line(rf"pid={call.pid} gen=1: was killed by SIGKILL")
        assert int((await fetch(server, "/pid")).body) == fresh


@pytest.mark.slow
async def test_a_worker_that_is_killed_while_the_server_stops_does_not_hold_it_up():
    async with serve(workers=2) as server, remote_apps() as apps, http1(server) as connection:
        await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        server.send_signal(signal.SIGTERM)
        await server.wait_line("exited with status 0")  # the other one, which has nothing to do
        os.kill(call.pid, signal.SIGKILL)
        assert await server.wait_exit() == 0


@pytest.mark.slow
async def test_a_master_that_is_killed_during_a_reload_leaves_nobody_behind():
    async with serve(workers=2, admin="127.0.0.1:0") as server:
        pids = {child.pid for child in psutil.Process(server.pid).children()}
        server.send_signal(signal.SIGHUP)
        await wait_candidate(server, pids)
        server.kill_master()
        await server.wait_workers_gone(10)


# Full


@pytest.mark.slow
async def test_a_full_ring_costs_the_clients_of_its_worker_and_nobody_else():
    async with serve(tls=True, http3=True, ring_size=131072, admin="127.0.0.1:0") as server:
        admin = Admin(server)
        await admin.wait_ready()
        connections = await connect_to_both(server)
        stopped, other = server.worker_pids
        os.kill(stopped, signal.SIGSTOP)
        flood = b"\x40" + connections[stopped].quic.server_connection_ids[0] + bytes(1180)
        dropped = 0.0
        while not dropped:
            for _ in range(50):
                connections[stopped].send_raw(flood)
                await asyncio.sleep(0)
            metrics = await admin.metrics()
            dropped = metrics.value("asgiri_worker_ring_drops_total", worker="0", reason="full")
        assert int((await request(connections[other], "GET", "/pid")).body) == other
        os.kill(stopped, signal.SIGCONT)
        assert int((await request(connections[stopped], "GET", "/pid")).body) == stopped
        assert metrics.value("asgiri_worker_ring_drops_total", worker="1", reason="full") == 0
        for connection in connections.values():
            await connection.close()


# Broken

MALICIOUS = '''
import contextlib, fcntl, os, socket, stat, struct
from tests.support.apps import app as inner, respond

async def app(scope, receive, send):
    if scope.get("path") != "/wait":
        return await inner(scope, receive, send)
    await respond(send, b"%d" % os.getpid())
    peer, carried = busy_pair()
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            kind = os.fstat(fd).st_mode
            name = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if fd > 2 and (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or "eventfd" in name):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        if stat.S_ISFIFO(kind) and fd > 2:
            fill(f"/proc/self/fd/{fd}", b"\\xff" * 8)
        elif "eventfd" in name:
            os.write(fd, b"\\xfe" + b"\\xff" * 7)
        elif stat.S_ISSOCK(kind) and name != os.readlink(f"/proc/self/fd/{carried.fileno()}"):
            with socket.socket(fileno=os.dup(fd)) as channel:
                if channel.family == socket.AF_UNIX:
                    with contextlib.suppress(OSError):
                        rubbish, fds = [b"x" * 9], [carried.fileno()]
                        socket.send_fds(channel, rubbish, fds, socket.MSG_DONTWAIT)
    carried.close()
    print("waiting enough", flush=True)
    while True:  # reads nothing more, and comes back to no event loop
        pass

def fill(path, content):
    pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(pipe, content)
    except BlockingIOError:
        os.close(pipe)

def busy_pair():
    """A connection whose last close would wait for an hour."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        carried, _ = listener.accept()
    carried.setblocking(False)
    try:
        while True:
            carried.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    carried.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return peer, carried
'''


@pytest.mark.slow
async def test_a_worker_that_wants_the_master_to_wait_hurts_nobody_else(tmp_path: Path):
    (tmp_path / "malicious.py").write_text(MALICIOUS)
    async with serve(
        "malicious:app", tls=True, http3=True, app_dir=tmp_path, admin="127.0.0.1:0", timeout=0
    ) as server:
        server.allowed_in_log += [".*"]
        admin = Admin(server)
        await admin.wait_ready()
        connections = await connect_to_both(server)
        malicious = int((await fetch(server, "/wait")).body)
        (healthy,) = set(connections) - {malicious}
        await server.wait_line("waiting enough")
        flood = b"\x40" + connections[malicious].quic.server_connection_ids[0] + bytes(100)
        for _ in range(20):
            connections[malicious].send_raw(flood)
            assert int((await request(connections[healthy], "GET", "/pid")).body) == healthy
            assert (await admin.get("/status")).status == 200
        assert int((await fetch(server, "/pid")).body) == healthy
        os.kill(malicious, signal.SIGKILL)
        for connection in connections.values():
            await connection.abort()


async def connect_to_both(server: Server) -> dict[int, Http3Connection]:
    """A connection to each of two workers, by its process."""
    connections: dict[int, Http3Connection] = {}
    while len(connections) < 2:
        connection = await Http3Connection.connect("127.0.0.1", server.port)
        pid = int((await request(connection, "GET", "/pid")).body)
        if connections.setdefault(pid, connection) is not connection:
            await connection.close()
    return connections


BROKEN = '''
import asyncio, ctypes, os, socket, stat
from tests.support.apps import app as inner, respond

async def app(scope, receive, send):
    if scope.get("path") != "/break":
        return await inner(scope, receive, send)
    await respond(send, b"%d" % os.getpid())
    for _ in range(20):
        scribble()
        babble()
        await asyncio.sleep(0.01)
    print("broken enough:", scribble(), "bytes", flush=True)

def scribble():
    """Over what is shared with the master: numbers, positions and datagrams."""
    written = 0
    for line in open("/proc/self/maps"):
        if "memfd:" in line and " rw-s " in line:
            begin, end = (int(number, 16) for number in line.split()[0].split("-"))
            size = min(end - begin, 65536)
            ctypes.memmove(begin, os.urandom(size), size)
            written += size
    return written

def babble():
    """Into every channel."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as channel:
                    if channel.family == socket.AF_UNIX:
                        channel.send(os.urandom(200), socket.MSG_DONTWAIT)
        except OSError:
            pass
'''


@pytest.mark.slow
async def test_a_worker_that_writes_rubbish_to_the_master_hurts_nobody_else(tmp_path: Path):
    (tmp_path / "broken.py").write_text(BROKEN)
    async with serve(
        "broken:app", tls=True, http3=True, app_dir=tmp_path, admin="127.0.0.1:0"
    ) as server:
        server.allowed_in_log += [".*"]  # the broken one may say what it likes
        admin = Admin(server)
        await admin.wait_ready()
        master, both = server.pid, dict(server.workers)
        connections = await connect_to_both(server)
        broken = int((await fetch(server, "/break")).body)
        (healthy,) = set(both.values()) - {broken}
        assert int((await server.wait_line(r"broken enough: (\d+) bytes"))[1]) >= 65536
        for _ in range(20):
            assert int((await request(connections[healthy], "GET", "/pid")).body) == healthy
            assert (await admin.get("/metrics")).status == 200
            assert (await admin.get("/status")).status == 200
        slot = next(slot for slot, pid in both.items() if pid == broken)
        if server.workers[slot] == broken:  # the master may have got rid of it by itself
            os.kill(broken, signal.SIGKILL)
            await server.wait_replaced(slot, broken)
        assert (await fetch(server, "/pid")).status == 200
        assert server.pid == master
        assert server.workers[1 - slot] == healthy
        for connection in connections.values():
            await connection.abort()

"""Workers that die: what waited for them is served by others, and they come back."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field

import psutil
import pytest

from tests.support.client import ExchangeFailed, read_response, request
from tests.support.fetch import fetch, http1
from tests.support.http1_client import Http1Connection
from tests.support.remote_app import remote_apps
from tests.support.server import Server, serve

pytestmark = pytest.mark.slow

CLIENTS = 3


@dataclass(frozen=True, slots=True)
class Failure:
    begin: float
    end: float
    error: BaseException


@dataclass
class Load:
    """Requests on new connections, several at a time, until told to stop."""

    server: Server
    port: int
    served: dict[bytes, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    stopped: bool = False

    async def run(self) -> None:
        while not self.stopped:
            begin = time.monotonic()
            try:
                connection = await Http1Connection.connect("127.0.0.1", self.port)
                try:
                    response = await request(connection, "GET", "/pid")
                finally:
                    await connection.close()
                assert response.status == 200
                self.served[response.body] = self.served.get(response.body, 0) + 1
            except (ExchangeFailed, OSError) as error:
                self.failures.append(Failure(begin, time.monotonic(), error))


async def test_requests_begun_after_a_kill_never_fail():
    async with serve(workers=3) as server:
        load = Load(server, server.port)
        tasks = [asyncio.create_task(load.run()) for _ in range(CLIENTS)]
        kills = []
        for slot in (0, 1, 2):
            pid = server.kill_worker(slot)
            kills.append(time.monotonic())
            await server.wait_replaced(slot, pid)
        load.stopped = True
        await asyncio.gather(*tasks)
        served = sum(load.served.values())
        assert served > 50
        # Only what a worker was answering when it was killed may be lost.
        for failure in load.failures:
            assert any(failure.begin <= moment <= failure.end for moment in kills), failure


async def test_a_killed_worker_is_soon_replaced():
    async with serve() as server:
        pid = server.kill_worker(1)
        # The rest is the start of an interpreter, which takes what the machine has to do besides.
        await server.wait_line(rf"worker\[1\] pid={pid}.*SIGKILL; the next one starts in 0\.1 s")
        fresh = await server.wait_replaced(1, pid)
        pids: set[int] = set()
        while pids != {server.workers[0], fresh}:  # it takes part
            responses = await asyncio.gather(*(fetch(server, "/pid") for _ in range(16)))
            pids |= {int(response.body) for response in responses}
            assert pid not in pids


async def test_connections_queued_for_a_killed_worker_are_served_by_others():
    async with serve(workers=2) as server:
        stopped = server.kill_worker(0, signal.SIGSTOP)
        connections = [await Http1Connection.connect("127.0.0.1", server.port) for _ in range(20)]
        exchanges = [await connection.start("GET", "/pid") for connection in connections]
        server.kill_worker(0)
        bodies = [(await read_response(exchange)).body for exchange in exchanges]
        assert b"%d" % stopped not in bodies
        for connection in connections:
            await connection.close()
        await server.wait_replaced(0, stopped)


async def test_connections_queued_for_a_blocked_worker_are_served_by_others():
    async with serve(workers=2) as server:
        stopped = server.kill_worker(0, signal.SIGSTOP)
        begin = time.monotonic()
        bodies = await asyncio.gather(*(fetch(server, "/pid") for _ in range(20)))
        assert time.monotonic() - begin < 2
        assert {response.body for response in bodies} == {b"%d" % server.workers[1]}
        server.kill_worker(0, signal.SIGCONT)
        assert server.workers[0] == stopped
        pids = set()
        while b"%d" % stopped not in pids:  # it takes part again
            responses = await asyncio.gather(*(fetch(server, "/pid") for _ in range(4)))
            pids = {response.body for response in responses}


async def test_a_connection_of_a_killed_worker_is_reset():
    async with serve() as server, remote_apps() as apps, http1(server) as connection:
        exchange = await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        slot = next(slot for slot, pid in server.workers.items() if pid == call.pid)
        server.kill_worker(slot)
        with pytest.raises(ExchangeFailed):
            await read_response(exchange)
        await server.wait_replaced(slot, call.pid)


@pytest.mark.parametrize("status", [0, 1, 3])
async def test_an_application_that_exits_is_started_again(status: int):
    async with serve() as server, remote_apps() as apps, http1(server) as connection:
        await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        slot = next(slot for slot, pid in server.workers.items() if pid == call.pid)
        call.exit_process(status)
        await server.wait_replaced(slot, call.pid)
        assert (await fetch(server)).status == 200


async def test_a_blocked_worker_does_not_hold_up_the_connections_of_others():
    async with serve(workers=2) as server:
        blocking = asyncio.create_task(fetch(server, "/block?milliseconds=1000"))
        await asyncio.sleep(0.3)  # longer than the dispatcher's patience with a silent worker
        begin = time.monotonic()
        for _ in range(20):
            assert (await fetch(server)).status == 200
        assert time.monotonic() - begin < 0.5
        assert not blocking.done()
        assert (await blocking).status == 200


async def test_no_zombies_remain():
    async with serve() as server:
        for _ in range(3):
            pid = server.kill_worker(0)
            await server.wait_replaced(0, pid)
        assert len(psutil.Process(server.pid).children()) == 2

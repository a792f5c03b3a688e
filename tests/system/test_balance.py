"""Requests given to whoever is free: connections that move between workers, wait in the master, and
are refused when nobody has time for them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.support.admin import Admin
from tests.support.client import read_response, request
from tests.support.fetch import fetch, http1
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.remote_app import remote_apps
from tests.support.server import Server, serve

pytestmark = pytest.mark.slow

PATIENCE = 20.0
CONNECTIONS = 1000
ROUNDS = 6
KILLS = 6
LOST_PER_KILL = 8
"""Connections that a worker had when it was killed, and no request of them yet: it takes one at a
time, and gives each back after its answer. Rarely one is seen."""


async def asking(server: Server, count: int) -> list[Http1Connection]:
    return [await Http1Connection.connect(server.host, server.port) for _ in range(count)]


async def close_all(connections: list[Http1Connection]) -> None:
    for connection in connections:
        await connection.close()


# Killing


@dataclass
class Clients:
    """Connections that ask again and again, each request with an id of its own."""

    port: int
    ids: Iterator[int] = field(default_factory=itertools.count)
    answered: dict[int, str] = field(default_factory=dict)
    lost: dict[int, tuple[float, float]] = field(default_factory=dict)
    by_connection: list[set[str]] = field(default_factory=list)
    served_since: dict[int, float] = field(default_factory=dict)
    """When each client last asked and was answered, or else connected."""

    async def run(self, number: int) -> None:
        """Ask ROUNDS times on one connection, or on another when that one is lost."""
        await asyncio.sleep(number / CONNECTIONS)
        left, pids = ROUNDS, set()
        while left:
            self.served_since[number] = time.monotonic()
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionError:
                continue
            try:
                while left:
                    left -= 1
                    pids.add(await self.ask(number, reader, writer))
                    await asyncio.sleep(random.random())
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()
        self.by_connection.append(pids)

    async def ask(
        self, client: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        number, begin = next(self.ids), time.monotonic()
        try:
            writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            pid = (await reader.readexactly(size)).decode()
        except (ConnectionError, asyncio.IncompleteReadError):
            # A worker that dies behind its answer takes the connection along all the same.
            self.lost[number] = (self.served_since[client], time.monotonic())
            raise
        self.served_since[client] = begin
        self.answered[number] = pid
        return pid


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8 * CONNECTIONS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_connections_that_move_lose_nothing_when_workers_are_killed(
    tmp_path: Path, many_files: None
):
    record = tmp_path / "record"
    async with serve(
        "tests.support.recording_app:app",
        workers=3,
        balance="request",
        environment={"RECORD": str(record)},
    ) as server:
        clients = Clients(server.port)
        tasks = [asyncio.create_task(clients.run(number)) for number in range(CONNECTIONS)]
        kills = []
        for _ in range(KILLS):
            await asyncio.sleep(random.random() / 2)
            slot = random.randrange(3)
            kills.append(time.monotonic())
            pid = server.kill_worker(slot)
            await server.wait_replaced(slot, pid)
        await asyncio.gather(*tasks)
    begun = Counter(int(line.split()[0]) for line in record.read_text().splitlines())
    assert set(begun.values()) == {1}, "a request was given to the application twice"
    assert set(clients.answered) <= set(begun)
    assert len(clients.answered) + len(clients.lost) == CONNECTIONS * ROUNDS
    # Only what a worker had taken when it was killed may be lost.
    for begin, end in clients.lost.values():
        assert any(begin <= moment <= end for moment in kills)
    assert len(set(clients.lost) - set(begun)) <= LOST_PER_KILL * KILLS
    moved = sum(len(pids) > 1 for pids in clients.by_connection)
    assert moved > CONNECTIONS / 2, "they hardly moved"


# Standing still


async def test_requests_on_idle_connections_do_not_wait_for_a_blocked_worker():
    async with serve(workers=2, balance="request") as server:
        connections = await asking(server, 8)
        blocking = asyncio.create_task(fetch(server, "/block?milliseconds=1500"))
        await asyncio.sleep(0.1)
        for _ in range(5):
            for connection in connections:
                assert (await request(connection, "GET", "/hello")).status == 200
        assert not blocking.done()
        assert (await blocking).status == 200
        await close_all(connections)


async def test_auto_notices_that_a_worker_computes_and_moves_the_requests_of_others():
    async with serve(workers=2, log_level="debug") as server:
        connections = await asking(server, 8)
        stopped = asyncio.Event()

        async def compute() -> None:
            async with http1(server) as connection:
                while not stopped.is_set():
                    await request(connection, "GET", "/block?milliseconds=200")

        computing = asyncio.create_task(compute())
        await server.wait_line("balance: requests")
        pids: set[bytes] = set()
        while len(pids) < 2:  # one connection, served by both
            pids.add((await request(connections[0], "GET", "/pid")).body)
        stopped.set()
        await computing
        await close_all(connections)


async def test_while_all_compute_the_first_that_is_free_serves_what_waits():
    async with serve(workers=2, balance="request") as server:
        long = asyncio.create_task(fetch(server, "/block?milliseconds=3000"))
        await asyncio.sleep(0.2)
        short = asyncio.create_task(fetch(server, "/block?milliseconds=600"))
        await asyncio.sleep(0.3)
        responses = await asyncio.gather(*(fetch(server, "/pid") for _ in range(8)))
        assert len({response.body for response in responses}) == 1
        assert short.done()
        assert not long.done()
        assert (await long).status == (await short).status == 200


# Idle in the master


async def test_a_stop_serves_what_comes_on_a_connection_that_is_on_its_way_back():
    async with (
        serve(workers=2, balance="request", graceful_timeout=10) as server,
        remote_apps() as apps,
        http1(server) as client,
    ):
        first = await client.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        server.send_signal(signal.SIGSTOP)
        # The worker hands the connection back, of which the master does not hear yet.
        await call.respond()
        call.finish()
        assert (await read_response(first)).status == 200
        await call.wait_ended()
        second = await client.start("GET", "/hello")
        server.send_signal(signal.SIGTERM)
        server.send_signal(signal.SIGCONT)
        assert (await read_response(second)).status == 200
        assert await server.wait_exit() == 0


async def test_an_idle_connection_lives_as_long_as_keep_alive_says():
    async with serve(workers=1, balance="request", keep_alive=1) as server, http1(server) as client:
        assert (await request(client, "GET", "/hello")).status == 200
        begin = time.monotonic()
        await asyncio.wait_for(client.wait_closed(), PATIENCE)
        assert time.monotonic() - begin > 0.9


async def test_clients_that_go_while_the_master_has_their_connections_leave_nothing_behind():
    async with serve(workers=2, balance="request") as server:
        master = psutil.Process(server.pid)
        before = master.num_fds()
        connections = await asking(server, 50)
        for connection in connections:
            assert (await request(connection, "GET", "/hello")).status == 200
        while master.num_fds() < before + 50:
            await asyncio.sleep(0.01)
        for number, connection in enumerate(connections):
            await (connection.abort() if number % 2 else connection.close())
        while master.num_fds() > before:
            await asyncio.sleep(0.01)
        for pid in server.worker_pids:
            while any(c.status == psutil.CONN_ESTABLISHED for c in inet(pid)):
                await asyncio.sleep(0.01)
        assert (await fetch(server)).status == 200


def inet(pid: int) -> list[object]:
    return psutil.Process(pid).net_connections("tcp")


async def test_idle_connections_outlive_a_reload():
    async with serve(workers=2, balance="request", keep_alive=60) as server:
        connections = await asking(server, 20)
        old = set()
        for connection in connections:
            old.add((await request(connection, "GET", "/pid")).body)
        server.send_signal(signal.SIGHUP)
        await server.wait_line("reloaded")
        for connection in connections:
            response = await request(connection, "GET", "/pid")
            assert response.status == 200
            assert response.body not in old
        await close_all(connections)


async def test_a_stop_closes_what_is_idle_and_serves_what_has_just_come():
    async with serve(workers=2, balance="request", graceful_timeout=10) as server:
        idle, asked = await asking(server, 2)
        for connection in (idle, asked):
            assert (await request(connection, "GET", "/hello")).status == 200
        server.send_signal(signal.SIGSTOP)
        exchange = await asked.start("GET", "/hello")
        server.send_signal(signal.SIGTERM)
        server.send_signal(signal.SIGCONT)
        assert (await read_response(exchange)).status == 200
        begin = time.monotonic()
        await asyncio.wait_for(idle.wait_closed(), PATIENCE)
        assert await server.wait_exit() == 0
        assert time.monotonic() - begin < 9
        await close_all([idle, asked])


async def test_unix_connections_move_too(tmp_path: Path):
    path = tmp_path / "a.sock"
    async with serve(workers=2, balance="request", bind=("127.0.0.1:0", f"unix:{path}")) as server:
        reader, writer = await asyncio.open_unix_connection(str(path))
        pids = set()
        while len(pids) < 2:
            writer.write(b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            pids.add(await reader.readexactly(size))
        assert pids == {b"%d" % pid for pid in server.worker_pids}
        writer.close()


# Connections that cannot move


async def test_of_connections_that_cannot_move_some_are_asked_to_come_again():
    """A second worker comes when the first one has all connections already."""
    async with serve(workers=1, tls=True, http3=True) as server:
        context = server.client_context("h2")
        place = (server.host, server.port)
        clients: list[Http2Connection | Http3Connection] = []
        for _ in range(15):  # the oldest are asked first: some of both
            clients.append(await Http2Connection.connect(*place, tls=context))
            clients.append(await Http3Connection.connect(*place))
        server.send_signal(signal.SIGTTIN)
        await server.wait_line(r"worker\[1\].*: ready")
        async with asyncio.timeout(PATIENCE):
            asked: list[Http2Connection | Http3Connection] = []
            while not {type(client) for client in asked} >= {Http2Connection, Http3Connection}:
                await asyncio.sleep(0.01)
                asked = [client for client in clients if client.goaways]
        assert len(asked) < len(clients)
        again = await Http2Connection.connect(*place, tls=context)
        response = await request(again, "GET", "/pid")
        assert response.body == b"%d" % server.workers[1]
        for client in (again, *clients):
            await client.close()


async def test_clients_of_one_address_stay_with_one_worker():
    async def pid_for(server: Server, address: str) -> bytes:
        stream = await asyncio.open_connection(server.host, server.port, local_addr=(address, 0))
        reader, writer = stream
        writer.write(b"GET /pid HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        response = await reader.read()
        writer.close()
        return response.rpartition(b"\r\n\r\n")[2]

    async with serve(workers=2, balance_policy="client-ip") as server:
        addresses = [f"127.0.0.{number}" for number in range(1, 21)]
        pids = [await pid_for(server, address) for address in addresses]
        assert set(pids) == {b"%d" % pid for pid in server.worker_pids}
        assert pids == [await pid_for(server, address) for address in addresses]


# Behind a proxy that keeps connections to us

NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream app {{ server 127.0.0.1:{port}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{own};
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_next_upstream off;
    }}
  }}
}}
"""


HAPROXY = """
global
  maxconn 256
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  retries 0
frontend f
  bind 127.0.0.1:{own}
  default_backend b
backend b
  http-reuse always
  server s 127.0.0.1:{port} pool-max-conn 8
"""
PROXIES = {
    "nginx": (NGINX, ("-p", "{folder}", "-e", "{folder}/error", "-c", "{folder}/config")),
    "haproxy": (HAPROXY, ("-db", "-f", "{folder}/config")),
}


@pytest.mark.parametrize("proxy", PROXIES)
async def test_behind_a_proxy_with_kept_connections_every_request_is_answered(
    tmp_path: Path, proxy: str
):
    # Debian has them where only root looks.
    program = shutil.which(proxy, path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip(f"{proxy} is not installed")
    config, arguments = PROXIES[proxy]
    # Round-robin: on a busy machine the least loaded of two idle workers may always be the same.
    options = {"balance": "request", "balance_policy": "round-robin"}
    async with serve(workers=2, **options) as server:
        with socket.create_server(("127.0.0.1", 0)) as free:
            own = free.getsockname()[1]
        text = config.format(folder=tmp_path, port=server.port, own=own)
        (tmp_path / "config").write_text(text)
        command = [program, *(argument.format(folder=tmp_path) for argument in arguments)]
        process = subprocess.Popen(command)
        try:
            clients = [await connect_when_open(own) for _ in range(8)]
            pids, ports = set(), set()
            for _ in range(10):
                for client in clients:
                    response = await request(client, "GET", "/pid")
                    assert response.status == 200
                    pids.add(response.body)
                for client in clients:
                    response = await request(client, "GET", "/scope")
                    ports.add(json.loads(response.body)["client"][1])
            assert pids == {b"%d" % pid for pid in server.worker_pids}
            # They were kept, and moved between the workers.
            assert len(ports) <= 16
            await close_all(clients)
        finally:
            process.terminate()
            process.wait(PATIENCE)


async def connect_when_open(port: int) -> Http1Connection:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await Http1Connection.connect("127.0.0.1", port)
            except ConnectionError:
                await asyncio.sleep(0.02)


# Limits


@pytest.mark.parametrize("tls", [False, True])
async def test_beyond_the_limit_requests_wait_and_are_refused_when_that_takes_too_long(tls: bool):
    async with (
        serve(workers=1, tls=tls, limit_concurrency=1, queue_timeout=0.5) as server,
        remote_apps() as apps,
        http1(server) as first,
        http1(server) as second,
    ):
        exchange = await first.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        response = await request(second, "GET", "/hello")
        assert response.status == 503
        assert dict(response.headers)[b"retry-after"] == b"1"
        waiting = asyncio.create_task(fetch(server))
        await call.respond()
        call.finish()
        assert (await read_response(exchange)).status == 200
        assert (await waiting).status in (200, 503)
        assert (await request(second, "GET", "/hello")).status == 200


async def test_what_one_worker_may_not_take_another_one_does():
    async with (
        serve(workers=2, limit_concurrency=1, queue_timeout=20) as server,
        remote_apps() as apps,
        http1(server) as first,
    ):
        await first.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        responses = await asyncio.gather(*(fetch(server, "/pid") for _ in range(30)))
        assert {response.status for response in responses} == {200}
        assert b"%d" % call.pid not in {response.body for response in responses}
        call.finish()


async def test_workers_are_pinned_to_different_processors():
    allowed = psutil.Process().cpu_affinity()
    async with serve(workers=2, cpu_affinity=True) as server:
        pinned = [psutil.Process(pid).cpu_affinity() for pid in server.worker_pids]
        assert pinned == [[allowed[0]], [allowed[1 % len(allowed)]]]


async def test_a_stop_serves_what_waits_in_the_master():
    async with (
        serve(
            workers=1,
            limit_concurrency=1,
            queue_timeout=20,
            graceful_timeout=20,
            admin="127.0.0.1:0",
        ) as server,
        remote_apps() as apps,
        http1(server) as first,
        http1(server) as second,
    ):
        admin = Admin(server)
        begun = await first.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        waiting = await second.start("GET", "/hello")
        await admin.wait_status(lambda status: status["connections"]["waiting"])
        server.send_signal(signal.SIGTERM)
        await call.respond()
        call.finish()
        assert (await read_response(begun)).status == 200
        assert (await read_response(waiting)).status == 200
        assert await server.wait_exit() == 0

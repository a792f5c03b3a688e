"""The admin worker of a real server: exact numbers, and answers when nobody else gives any."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.admin import Admin
from tests.support.client import request
from tests.support.fetch import fetch
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.server import Server, run_to_end, serve
from tests.support.websocket_client import open_websocket

pytestmark = pytest.mark.slow

ANYWHERE = "127.0.0.1:0"


def admin_pid(server: Server) -> int:
    """Of the one that last reported ready."""
    return int(re.findall(r"admin pid=(\d+) gen=\d+: ready", server.log.text)[-1])


async def reload(server: Server, generation: int) -> None:
    start = server.log.end
    server.send_signal(signal.SIGHUP)
    await server.wait_line(f"reloaded: generation {generation} serves", start)


# Exact counters


class Visitors:
    """Clients of each version, and what they asked for."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.asked = {"1": 0, "2": 0, "3": 0}
        self.missing = 0
        self.websockets = 0

    async def ask(self, version: str, count: int) -> None:
        connection = await self._connect(version)
        try:
            for number in range(count):
                path, status = ("/hello", 200) if number % 5 else ("/missing", 404)
                assert (await request(connection, "GET", path)).status == status
                self.asked[version] += 1
                self.missing += status == 404
        finally:
            await connection.close()

    async def talk(self) -> None:
        connection = await self._connect("1")
        try:
            websocket = await open_websocket(connection, "/pid")
            self.websockets += 1
            await websocket.send_close()
            await websocket.read_close()
            await websocket.wait_ended()
        finally:
            await connection.close()

    async def ask_all(self, count: int) -> None:
        await asyncio.gather(*(self.ask(version, count) for version in self.asked), self.talk())

    async def _connect(self, version: str) -> Any:
        host, port, context = self.server.host, self.server.port, self.server.client_context
        if version == "1":
            return await Http1Connection.connect(host, port, tls=context("http/1.1"))
        if version == "2":
            return await Http2Connection.connect(host, port, tls=context("h2"))
        return await Http3Connection.connect(host, port)


async def test_counters_are_exact_over_all_versions_and_reloads():
    async with serve(workers=2, tls=True, http3=True, admin=ANYWHERE) as server:
        admin, visitors = Admin(server), Visitors(server)
        await admin.wait_ready()
        pid = admin_pid(server)
        for generation in (2, 3, None):
            await visitors.ask_all(20)
            if generation is not None:
                await reload(server, generation)
        await visitors.ask_all(20)
        total = sum(visitors.asked.values())
        await admin.wait_status(lambda status: sum(status["totals"]["requests"].values()) >= total)
        # Also those who answered before the reloads have gone by now, or are still shown.
        metrics = await admin.metrics()
        assert metrics.by("asgiri_requests_total", "version") == visitors.asked
        responses = metrics.by("asgiri_responses_total", "status")
        assert responses == {
            "1xx": 0, "2xx": total - visitors.missing, "3xx": 0, "4xx": visitors.missing, "5xx": 0
        }  # fmt: skip
        assert metrics.value("asgiri_request_duration_seconds_count") == total
        assert metrics.value("asgiri_websockets_opened_total") == visitors.websockets
        opened = metrics.by("asgiri_connections_opened_total", "version")
        assert opened == {"1": 8, "2": 4, "3": 4}
        assert metrics.value("asgiri_connections_accepted_total") == 12
        assert metrics.by("asgiri_reloads_total", "result") == {"done": 2, "failed": 0}
        assert metrics.value("asgiri_workers_started_total") == 6
        assert metrics.value("asgiri_generation") == 3
        assert admin_pid(server) == pid  # it lived through both
        assert metrics.sum("asgiri_worker_requests_total") <= total


async def test_counters_go_on_when_the_master_is_exchanged():
    async with serve(workers=1, admin=ANYWHERE) as server:
        admin = Admin(server)
        await admin.wait_ready()
        for _ in range(7):
            await fetch(server)
        old = admin_pid(server)
        start = server.log.end
        server.send_signal(signal.SIGUSR2)
        await server.wait_line("reloaded: generation 2 serves", start)
        await server.wait_line(r"admin pid=\d+ gen=2: ready", start)
        await server.wait_line(rf"admin pid={old} gen=1: exited with status 0", start)
        for _ in range(5):
            await fetch(server)
        status = await admin.wait_status(lambda s: s["totals"]["requests"]["1"] >= 12)
        assert status["totals"]["requests"]["1"] == 12
        assert status["connections"]["accepted"] == 12
        assert status["reload"]["upgrades"] == 1
        assert status["uptime"] > 0


async def test_what_a_killed_worker_has_counted_stays():
    async with serve(workers=1, admin=ANYWHERE) as server:
        admin = Admin(server)
        for _ in range(5):
            await fetch(server)
        await admin.wait_status(lambda status: status["totals"]["requests"]["1"] == 5)
        pid = server.kill_worker(0)
        await server.wait_replaced(0, pid)
        await fetch(server)
        status = await admin.wait_status(lambda status: status["totals"]["requests"]["1"] >= 6)
        assert status["totals"]["requests"]["1"] == 6
        assert status["ended"]["crashed"] == 1
        assert status["workers"][0]["requests"]["1"] == 1


# When nobody else answers


async def test_it_answers_while_every_worker_stands_in_a_handler():
    async with serve(workers=2, admin=ANYWHERE) as server:
        admin = Admin(server)
        await admin.wait_ready()
        blocked = [asyncio.create_task(fetch(server, "/block?milliseconds=2500"))]
        await admin.wait_status(lambda status: status["counts"]["blocked"] == 1)
        blocked.append(asyncio.create_task(fetch(server, "/block?milliseconds=1500")))
        status = await admin.wait_status(lambda status: status["counts"]["blocked"] == 2)
        assert [worker["state"] for worker in status["workers"]] == ["blocked"] * 2
        assert (await admin.get("/healthz")).status == 200
        assert (await admin.get("/readyz")).status == 200
        assert (await admin.metrics()).sum("asgiri_worker_blocked") == 2
        assert [(await each).status for each in blocked] == [200, 200]


async def test_it_answers_while_the_master_stands_still():
    async with serve(workers=1, admin=ANYWHERE) as server:
        admin = Admin(server)
        await admin.wait_ready()
        assert await admin.wait_verdict("/healthz", 200) == "ok"
        server.send_signal(signal.SIGSTOP)
        try:
            status = await admin.wait_status(lambda status: status["master"]["silence"] > 1)
            assert status["counts"]["ready"] == 1
        finally:
            server.send_signal(signal.SIGCONT)
        await admin.wait_status(lambda status: status["master"]["silence"] < 1)


async def test_readiness_follows_the_workers():
    async with serve(workers=2, admin=ANYWHERE) as server:
        admin = Admin(server)
        assert await admin.wait_verdict("/readyz", 200) == "2 of 2 workers are ready"
        assert (await admin.get("/readyz?workers=3")).status == 503
        assert (await admin.get("/readyz?workers=many")).status == 400
        server.send_signal(signal.SIGWINCH)
        verdict = await admin.wait_verdict("/readyz", 503)
        assert verdict == "0 of 0 workers are ready, 1 are needed"
        server.send_signal(signal.SIGHUP)
        await admin.wait_verdict("/readyz", 200)


async def test_it_goes_last_and_says_so_meanwhile():
    async with serve(workers=1, admin=ANYWHERE, graceful_timeout="20s") as server:
        admin = Admin(server)
        await admin.wait_verdict("/readyz", 200)
        answer = asyncio.create_task(fetch(server, "/sleep?milliseconds=2000"))
        await admin.wait_status(lambda status: status["workers"][0]["requests_active"])
        server.send_signal(signal.SIGTERM)
        assert await admin.wait_verdict("/readyz", 503) == "the server stops"
        assert (await admin.get("/healthz")).status == 200
        await admin.wait_status(lambda status: status["counts"]["draining"] == 1)
        assert (await answer).status == 200
        assert await server.wait_exit() == 0


# Its own life


async def test_it_is_replaced_when_it_dies_and_nobody_else_notices():
    async with serve(workers=1, admin=ANYWHERE) as server:
        admin = Admin(server)
        await admin.wait_ready()
        pid = admin_pid(server)
        workers = server.worker_pids
        start = server.log.end
        os.kill(pid, signal.SIGKILL)
        await server.wait_line(r"admin pid=\d+ gen=1: ready", start)
        assert (await admin.get("/healthz")).status == 200
        assert admin_pid(server) != pid
        assert server.worker_pids == workers
        assert (await admin.status())["ended"]["crashed"] == 0


async def test_it_is_replaced_when_its_options_change(tmp_path: Path):
    config = tmp_path / "asgiri.toml"
    text = "admin = '127.0.0.1:0'\nstatsd_prefix = '{}'\n"
    config.write_text(text.format("one"))
    async with serve(workers=1, config=config) as server:
        admin = Admin(server)
        await admin.wait_ready()
        start = server.log.end
        await reload(server, 2)
        assert "admin" not in server.log.text[start:]
        config.write_text(text.format("two"))
        start = server.log.end
        await reload(server, 3)
        await server.wait_line(r"admin pid=\d+ gen=2: ready", start)
        assert (await admin.get("/healthz")).status == 200


async def test_it_takes_the_sockets_of_nobody(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, log = run_to_end(
            "tests.support.apps:app", "--bind", ANYWHERE, "--admin", f"127.0.0.1:{port}"
        )
    assert status == 1
    assert f"cannot bind 127.0.0.1:{port} (tcp): Address already in use" in log


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("127.0.0.1", "must name a port, such as 127.0.0.1:9100"),
        ("fd://3", "must be HOST:PORT, or unix: and a path"),
        ("localhost:99999", "must end in a port between 0 and 65535"),
    ],
)
def test_an_address_that_is_none_is_refused(value, remedy):
    status, log = run_to_end("tests.support.apps:app", "--admin", value)
    assert (status, log) == (2, f"asgiri: --admin {value}: {remedy}\n")


async def test_it_listens_on_a_unix_socket(tmp_path: Path):
    path = tmp_path / "admin.sock"
    async with serve(workers=1, admin=f"unix:{path}") as server:
        await server.wait_line(f"admin listens on unix:{path}")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 ")
    assert not path.exists()


async def test_it_answers_what_it_is_asked_and_no_more():
    async with serve(workers=1, admin=ANYWHERE) as server:
        admin = Admin(server)
        page = await admin.get("/")
        assert page.status == 200
        assert page.header("content-type") == "text/html; charset=utf-8"
        assert (await admin.get("/", method="POST")).status == 405
        assert (await admin.get("/hello")).status == 404
        head = await admin.get("/status", method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert (await admin.get("/metrics")).header("content-type") == (
            "text/plain; version=0.0.4; charset=utf-8"
        )
        # It is no worker: neither its own requests nor its process are counted.
        status = await admin.status()
        assert len(status["workers"]) == 1
        assert sum(status["totals"]["requests"].values()) == 0
        assert status["connections"]["accepted"] == 0


async def test_statsd_needs_no_address_of_ours():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        host = f"127.0.0.1:{receiver.getsockname()[1]}"
        async with serve(workers=1, statsd_host=host, statsd_prefix="shop") as server:
            loop = asyncio.get_running_loop()
            await fetch(server)
            async with asyncio.timeout(20):
                while b"shop.gunicorn.requests:1|c" not in await loop.sock_recv(receiver, 65536):
                    pass


async def test_the_stream_channel_has_a_board_as_well():
    async with serve(
        workers=1,
        tls=True,
        http3=True,
        ring_channel="stream",
        ring_size="256KiB",
        admin=ANYWHERE,
    ) as server:
        admin, visitors = Admin(server), Visitors(server)
        await visitors.ask("3", 3)
        status = await admin.wait_status(lambda status: status["totals"]["requests"]["3"] == 3)
        assert status["workers"][0]["ring"]["size"] == 256 << 10

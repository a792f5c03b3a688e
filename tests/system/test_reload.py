"""SIGHUP under load: nobody notices, whether the new generation works or not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.certificates import certificates
from tests.support.client import ClientConnection, ClientExchange, ExchangeFailed, request
from tests.support.fetch import fetch
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.load import (
    REFUSED,
    Http2,
    Http3,
    KeepAlive,
    SecureKeepAlive,
    Streams2,
    Streams3,
    WebSockets,
    WebSockets2,
    WebSockets3,
    assert_nothing_failed,
    load,
    ports,
    summary,
)
from tests.support.remote_app import AppCall, RemoteApps, remote_apps
from tests.support.server import Server, serve
from tests.support.websocket_client import WebSocketClient, open_websocket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EVERYBODY = (KeepAlive, SecureKeepAlive, Http2, Http3, WebSockets)
RELOADED = "reloaded: generation {} serves"


async def reload(server: Server, generation: int) -> None:
    """Reload and return when the new generation serves."""
    start = server.log.end
    server.send_signal(signal.SIGHUP)
    await server.wait_line(RELOADED.format(generation), start)


async def test_nothing_fails_in_twenty_reloads():
    async with serve(workers=2, tls=True, http3=True, insecure_bind="127.0.0.1:0") as server:
        async with load(server, EVERYBODY) as clients:
            for generation in range(2, 22):
                await reload(server, generation)
            newest = set(server.worker_pids)
            for client in clients:
                if client.pids:  # a WebSocket stays where it is
                    await client.wait_served_by(newest)
        print(summary(clients))
        assert_nothing_failed(clients)


async def test_uploads_downloads_and_tunnels_survive_reloads():
    """Several streams at a time on each connection, with bodies larger than any window."""
    kinds = (Streams2, Streams3, WebSockets2, WebSockets3)
    async with serve(workers=2, tls=True, http3=True, ws_drain="close") as server:
        async with load(server, kinds) as clients:
            for generation in range(2, 5):
                await reload(server, generation)
                newest = set(server.worker_pids)
                for client in clients[:2]:
                    await client.wait_served_by(newest)
        print(summary(clients))
        assert_nothing_failed(clients)


BROKEN = {
    "an import that fails": ("import nothing_of_that_name", "No module named 'nothing_of_that"),
    "a syntax error": ("app = (", r"SyntaxError|was never closed"),
    "no application": ("application = 1", "app"),
    "a failing startup": ("from tests.support.apps import failing_lifespan as app", "no database"),
    "a broken startup": ("from tests.support.apps import raising_lifespan as app", "startup broke"),
    "an exit": ("import sys; sys.exit(7)", r"SystemExit|status 7|exit"),
    "a hard exit": ("import os; os._exit(7)", "exited with status 7 before it was ready"),
    "a segfault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV before it was ready"),
    "a hang": ("import time; time.sleep(3600)", r"not ready after 12 s; aborted"),
}
BAD_OPTIONS = {
    "max_requests = -1": "max_requests = -1: ",
    "max_requests = ": "asgiri.toml",
    "max_request = 5": "max_requests",
    "header = [5]": "header",
}
NOT_RELOADED = "reload refused, everything stays as it is: (.*)"
GOOD = "from tests.support.apps import app"


async def test_a_new_generation_that_fails_changes_nothing(tmp_path, manager):
    module, options = tmp_path / "shop.py", tmp_path / "asgiri.toml"
    module.write_text(GOOD)
    options.touch()
    async with serve(
        "shop:app",
        workers=2,
        tls=True,
        http3=True,
        insecure_bind="127.0.0.1:0",
        app_dir=tmp_path,
        boot_timeout=12,
        lifespan="on",
        config=options,
        environment={"PYTHONDONTWRITEBYTECODE": "1", **manager.environment},
    ) as server:
        await manager.wait_for("READY")
        server.allowed_in_log += [r"nothing_of_that_name", "SyntaxError", "SystemExit", "broke"]
        pids = set(server.worker_pids)
        async with load(server, EVERYBODY) as clients:
            for name, (code, reason) in BROKEN.items():
                module.write_text(code)
                start = server.log.end
                server.send_signal(signal.SIGHUP)
                failed = await server.wait_line("reload failed, the old workers stay: .*", start)
                assert re.search(reason, server.log.text[start:]), (name, failed[0])
                assert (await manager.wait_for("READY"))["STATUS"] in failed[0]
            for content, reason in BAD_OPTIONS.items():
                options.write_text(content)
                start = server.log.end
                server.send_signal(signal.SIGHUP)
                line = await server.wait_line(NOT_RELOADED, start)
                assert reason in line[1]
                assert line[1] in (await manager.wait_for("READY"))["STATUS"]
            served = {pid for client in clients for pid in client.pids}
            assert served <= pids
            assert set(server.worker_pids) == pids
            module.write_text(GOOD)
            options.write_text("")
            start = server.log.end
            server.send_signal(signal.SIGHUP)
            await server.wait_line(r"reloaded: generation \d+ serves", start)
        assert_nothing_failed(clients)


async def test_the_configuration_is_read_again(tmp_path):
    """By the new workers, and by the master; what takes a restart is told."""
    options = tmp_path / "asgiri.toml"
    options.write_text('header = ["x-version: 1"]\n')
    async with serve(workers=1, config=options) as server:
        assert (await fetch(server)).header("x-version") == "1"
        options.write_text('header = ["x-version: 2"]\nlog_level = "debug"\nbacklog = 64\n')
        await reload(server, 2)
        assert "changed, but takes a restart: --backlog" in server.log.text
        assert (await fetch(server)).header("x-version") == "2"
        pid = server.kill_worker(0)
        await server.wait_line(rf"worker\[0\] pid={pid} gen=2: was killed by SIGKILL$")
        await server.wait_replaced(0, pid)
        assert (await fetch(server)).header("x-version") == "2"


async def test_a_broken_certificate_changes_nothing(tmp_path):
    files = certificates()
    certfile, keyfile = tmp_path / "chain.pem", tmp_path / "key.pem"
    certfile.write_bytes(Path(files.certfile).read_bytes())
    keyfile.write_bytes(Path(files.keyfile).read_bytes())
    async with serve(
        workers=2, http3=True, certfile=certfile, keyfile=keyfile, insecure_bind="127.0.0.1:0"
    ) as server:
        pids = set(server.worker_pids)
        async with load(server, EVERYBODY) as clients:
            for damage in (lambda: certfile.write_text("rubbish"), certfile.unlink):
                damage()
                start = server.log.end
                server.send_signal(signal.SIGHUP)
                line = await server.wait_line(
                    "reload refused, everything stays as it is: .*", start
                )
                assert "chain.pem" in line[0]
                assert (await fetch(server, "/pid")).status == 200
        assert {pid for client in clients for pid in client.pids} <= pids
        assert set(server.worker_pids) == pids
        assert_nothing_failed(clients)


@dataclass
class Begun:
    """A response that streams and a WebSocket, both of them older than the reload."""

    connection: ClientConnection
    exchange: ClientExchange
    call: AppCall
    websocket: WebSocketClient

    @classmethod
    async def begin(
        cls, connection: ClientConnection, other: ClientConnection, apps: RemoteApps
    ) -> Begun:
        exchange = await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        await call.start_response()
        websocket = await open_websocket(other, "/")
        begun = cls(connection, exchange, call, websocket)
        await begun.go_on("before")
        return begun

    async def go_on(self, text: str) -> None:
        await self.call.send_body(text.encode())
        assert await self.exchange.read() == text.encode()
        await self.websocket.send_text(text)
        assert await self.websocket.read_message() == text

    async def assert_refuses_what_is_new(self) -> None:
        """RFC 9113 §6.8, RFC 9114 §5.2: above the second GOAWAY, as not processed."""
        while len(self.connection.goaways) < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(ExchangeFailed) as failed:
            await request(self.connection, "GET", "/pid")
        assert failed.value.code in REFUSED

    async def end(self) -> None:
        await self.call.send_body(b"", more=False)
        self.call.finish()
        assert await self.exchange.read() == b""
        await self.websocket.send_close()
        assert (await self.websocket.read_close())[0] == 1000


@contextlib.asynccontextmanager
async def every_version(server: Server) -> AsyncIterator[list[list[ClientConnection]]]:
    """Two connections of each."""
    plain, secure = ports(server)

    async def connect(version: str) -> ClientConnection:
        match version:
            case "1.1":
                return await Http1Connection.connect("127.0.0.1", plain)
            case "2":
                tls = server.client_context("h2")
                return await Http2Connection.connect("127.0.0.1", secure, tls=tls)
            case "3":
                return await Http3Connection.connect("127.0.0.1", secure)
        tls = server.client_context("http/1.1")
        return await Http1Connection.connect("127.0.0.1", secure, tls=tls)

    names = ("1.1", "1.1 over TLS", "2", "3")
    opened = [[await connect(name) for _ in range(2)] for name in names]
    try:
        yield opened
    finally:
        for connection in itertools.chain(*opened):
            await connection.close()


async def test_what_began_before_a_reload_ends_normally():
    """Responses that stream, and conversations that the drain may not break off."""
    async with (
        serve(
            workers=2, tls=True, http3=True, insecure_bind="127.0.0.1:0", ws_drain="keep"
        ) as server,
        remote_apps() as apps,
        every_version(server) as connections,
    ):
        begun = [await Begun.begin(*pair, apps) for pair in connections]
        await reload(server, 2)
        for number in range(5):
            for one in begun:
                await one.go_on(f"{number}")
        new = set(server.worker_pids)
        assert new.isdisjoint(one.call.pid for one in begun)
        assert int((await fetch(server, "/pid")).body) in new
        for one in begun:
            if one.connection.multiplexed:
                await one.assert_refuses_what_is_new()
            await one.go_on("after")
            await one.end()


async def test_websockets_are_told_to_come_again():
    async with (
        serve(
            workers=2, tls=True, http3=True, insecure_bind="127.0.0.1:0", graceful_timeout=4
        ) as server,
        every_version(server) as connections,
    ):
        websockets = [await open_websocket(pair[0], "/") for pair in connections]
        await reload(server, 2)

        async def be_told(websocket: WebSocketClient) -> None:
            assert (await websocket.read_close())[0] == 1012
            await websocket.send_close(1012)

        await asyncio.gather(*map(be_told, websockets))


async def test_reloads_asked_for_at_once_are_two():
    """The one under way, and one for all that were asked for meanwhile."""
    async with serve(workers=1) as server:
        async with load(server, [KeepAlive]) as clients:
            server.send_signal(signal.SIGHUP)
            while len(psutil.Process(server.pid).children()) < 2:
                await asyncio.sleep(0.01)
            for _ in range(4):
                server.send_signal(signal.SIGHUP)
                await server.wait_line("reload follows when what is under way has ended")
            await server.wait_line(RELOADED.format(2))
            await server.wait_line(RELOADED.format(3))
        assert_nothing_failed(clients)
        assert "generation 4" not in server.log.text


async def test_new_code_answers_within_the_start_of_a_worker(tmp_path):
    module = tmp_path / "shop.py"
    module.write_text(GOOD)
    async with serve("shop:app", workers=2, app_dir=tmp_path) as server:
        module.write_text("from tests.support.apps import without_lifespan as app, pid")
        begin = time.monotonic()
        await reload(server, 2)
        new = set(server.worker_pids)
        assert int((await fetch(server, "/pid")).body) in new
        print(f"new code after {time.monotonic() - begin:.2f} s")


# Recycling


@pytest.mark.parametrize(
    "limit",
    [
        {"max_requests": 200, "max_requests_jitter": 100},
        {"max_worker_lifetime": 5},
    ],
    ids=["requests", "lifetime"],
)
async def test_recycling_loses_nothing(limit):
    async with serve(
        workers=2, tls=True, http3=True, insecure_bind="127.0.0.1:0", **limit
    ) as server:
        async with load(server, EVERYBODY, pause=0.001) as clients:
            for slot, pid in server.workers.items():
                pid = await server.wait_replaced(slot, pid)
                await server.wait_replaced(slot, pid)
        print(summary(clients))
        assert_nothing_failed(clients)
        reason = "requests" if "max_requests" in limit else "s of service"
        assert re.search(rf"to be replaced: \d+ {reason}", server.log.text)

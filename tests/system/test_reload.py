"""SIGHUP under load: nobody notices, whether the new generation works or not."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.certificates import certificates
from tests.support.fetch import fetch, http1
from tests.support.load import (
    Http2,
    Http3,
    KeepAlive,
    SecureKeepAlive,
    WebSockets,
    assert_nothing_failed,
    load,
    summary,
)
from tests.support.remote_app import remote_apps
from tests.support.server import Server, serve
from tests.support.websocket_client import open_websocket

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
REFUSED = "reload refused, everything stays as it is: (.*)"
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
                line = await server.wait_line(REFUSED, start)
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


async def test_what_began_before_a_reload_ends_normally():
    """A response that streams, and a conversation that the drain may not break off."""
    async with (
        serve(workers=2, ws_drain="keep") as server,
        remote_apps() as apps,
        http1(server) as connection,
        http1(server) as other,
    ):
        exchange = await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        await call.start_response()
        websocket = await open_websocket(other, "/")
        await websocket.send_text("before")
        assert await websocket.read_message() == "before"
        await reload(server, 2)
        for number in range(20):
            await call.send_body(b"part %d" % number)
            assert await exchange.read() == b"part %d" % number
            await websocket.send_text(f"{number}")
            assert await websocket.read_message() == f"{number}"
        assert (await fetch(server, "/pid")).body != b"%d" % call.pid
        await call.send_body(b"", more=False)
        call.finish()
        assert await exchange.read() == b""
        await websocket.send_close()
        assert (await websocket.read_close())[0] == 1000


async def test_a_websocket_is_told_to_come_again():
    async with serve(workers=2, graceful_timeout=6) as server, http1(server) as connection:
        websocket = await open_websocket(connection, "/")
        await reload(server, 2)
        assert (await websocket.read_close())[0] == 1012


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

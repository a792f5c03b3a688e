"""--reload: whoever changes a file is served the new code, whatever else is going on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.client import ClientExchange, ExchangeFailed, request
from tests.support.fetch import fetch, http1
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.load import ports
from tests.support.server import PATIENCE, PROJECT, Server, ServerOptions, run_to_end
from tests.support.websocket_client import open_websocket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CODE = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
    elif scope["path"] == "/events":
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        while True:
            await send({"type": "http.response.body", "body": b"data: x\\n\\n", "more_body": True})
            await asyncio.sleep(0.05)
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"VERSION"})
"""


def code(version: str) -> str:
    return CODE.replace("VERSION", version)


@contextlib.asynccontextmanager
async def develop(folder: Path, first: str, **options: Any) -> AsyncIterator[Server]:
    """Run the server on shop.py in this folder; it need not start."""
    (folder / "shop.py").write_text(first)
    description = ServerOptions(
        app="shop:app",
        workers=2,
        tls=options.pop("tls", False),
        options={"reload": True, "lifespan": "off", **options},
        directory=folder,
    )
    server = await asyncio.to_thread(Server, description.command(), description)
    try:
        await server.wait_line(f"--reload: watching {folder}")
        yield server
    except BaseException as error:
        error.add_note(f"log of the server:\n{server.log.text}")
        raise
    finally:
        server.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.stop)


async def change(server: Server, text: str, *, waiting_for: str) -> re.Match[str]:
    """Save shop.py as editors do, and wait for a line of the log."""
    start = server.log.end
    draft = server.options.directory / ".shop.py.swp"
    draft.write_text(text)
    draft.replace(server.options.directory / "shop.py")
    await server.wait_line(r"shop\.py changed: reloading", start)
    return await server.wait_line(waiting_for, start)


async def version(server: Server) -> bytes:
    return (await fetch(server, "/")).body


RELOADED = r"reloaded: generation \d+ serves"


@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preload"])
async def test_code_is_waited_for_until_it_works(tmp_path, preload):
    if preload and sys.platform != "linux":
        pytest.skip("--preload needs Linux")
    async with develop(tmp_path, "import nothing_of_that_name", preload=preload) as server:
        server.allowed_in_log += ["nothing_of_that_name", "SyntaxError"]
        await server.wait_line("ModuleNotFoundError: No module named 'nothing_of_that_name'$")
        assert "; waiting for a change" in server.log.text
        await change(server, code("one"), waiting_for="listening on")
        assert await version(server) == b"one"
        await change(server, "app = (", waiting_for="SyntaxError: '\\(' was never closed$")
        assert await version(server) == b"one"
        # Of the same length, within the same second.
        for number in (b"two", b"six"):
            await change(server, code(number.decode()), waiting_for=RELOADED)
            assert await version(server) == number


async def test_open_streams_and_websockets_do_not_hold_it_up(tmp_path):
    async with (
        develop(tmp_path, code("old"), tls=True, http3=True, insecure_bind="127.0.0.1:0") as server,
        contextlib.AsyncExitStack() as stack,
    ):
        await server.wait_line("listening on")
        old = set(server.worker_pids)
        tls = server.client_context("h2")
        http2 = await Http2Connection.connect("127.0.0.1", ports(server)[1], tls=tls)
        http3 = await Http3Connection.connect("127.0.0.1", ports(server)[1])
        streams = []
        for connection in (await stack.enter_async_context(http1(server)), http2, http3):
            exchange = await connection.start("GET", "/events")
            assert b"data: x" in await exchange.read()
            streams.append(exchange)
        websocket = await open_websocket(await stack.enter_async_context(http1(server)), "/")
        await change(server, code("new"), waiting_for=RELOADED)
        assert await version(server) == b"new"
        # Two seconds for what is open, and what the machine needs.
        left = await asyncio.to_thread(psutil.wait_procs, map(psutil.Process, old), PATIENCE)
        assert left[1] == []
        assert (await websocket.read_close())[0] == 1012
        for exchange in streams:
            with pytest.raises(ExchangeFailed):
                await read_all(exchange)
        for connection in (http2, http3):
            await connection.close()


async def read_all(exchange: ClientExchange) -> None:
    while await exchange.read():
        pass


HANG = "import time; time.sleep(3600)"


async def test_code_that_hangs_makes_way_for_the_next(tmp_path):
    async with develop(tmp_path, HANG) as server:
        await change(server, code("one"), waiting_for="listening on")
        assert await version(server) == b"one"
        (tmp_path / "shop.py").write_text(HANG)
        await server.wait_line("changed: reloading", server.log.text.index("listening on"))
        assert await version(server) == b"one"
        await change(server, code("two"), waiting_for=RELOADED)
        assert await version(server) == b"two"
        assert "not ready after" not in server.log.text


async def test_an_upgrade_goes_on_watching(tmp_path):
    async with develop(tmp_path, code("one")) as server:
        await server.wait_line("listening on")
        start = server.log.end
        server.send_signal(signal.SIGUSR2)
        await server.wait_line("upgraded: asgiri", start)
        await server.wait_line("--reload: watching", start)
        await server.wait_line(RELOADED, start)
        await change(server, code("two"), waiting_for=RELOADED)
        assert await version(server) == b"two"
        assert len(watchers(server)) == 1


def watchers(server: Server) -> list[int]:
    found = []
    for child in psutil.Process(server.pid).children():
        with contextlib.suppress(psutil.Error):
            if "asgiri.watch" in child.cmdline():
                found.append(child.pid)
    return found


async def test_a_stop_does_not_wait_for_better_code(tmp_path):
    async with develop(tmp_path, "import nothing_of_that_name") as server:
        server.allowed_in_log.append("nothing_of_that_name")
        await server.wait_line("waiting for a change")
        server.send_signal(signal.SIGINT)
        assert await server.wait_exit() == 0


async def test_nobody_outlives_a_killed_master(tmp_path):
    async with develop(tmp_path, code("one")) as server:
        await server.wait_line("listening on")
        assert len(watchers(server)) == 1
        server.kill_master()
        await server.wait_workers_gone(6)


async def test_the_application_of_a_crashed_worker_comes_back(tmp_path):
    async with develop(tmp_path, code("one")) as server:
        await server.wait_line("listening on")
        pid = server.kill_worker(0)
        await server.wait_replaced(0, pid)
        async with http1(server) as connection:
            assert (await request(connection, "GET", "/")).body == b"one"


# What can be wrong with it


def test_a_folder_that_does_not_exist_is_named():
    status, text = run_to_end("--reload", "--reload-dir", "missing", "shop:app")
    assert status == 1
    assert text == "asgiri: --reload-dir missing: no such folder; name one that exists\n"


NOT_INSTALLED = """
import sys
from asgiri import cli
sys.modules["watchfiles"] = None
sys.exit(cli.main(["--reload", "shop:app"]))
"""


def test_a_missing_library_is_named():
    done = subprocess.run(
        [sys.executable, "-c", NOT_INSTALLED],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        timeout=PATIENCE,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "asgiri: --reload: watchfiles is not installed; pip install 'asgiri[reload]'\n"
    )

"""The server from Python."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import asgiri
from asgiri.errors import ConfigError, StartError
from asgiri.server import HttpProtocolVersion, Server
from tests.support import apps
from tests.support.certificates import certificates
from tests.support.client import request
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.server import PROJECT, die_with_parent

PATIENCE = 20.0


def files() -> dict[str, str]:
    return {"certfile": str(certificates().certfile), "keyfile": str(certificates().keyfile)}


async def test_it_serves_on_this_event_loop():
    async with Server(apps.app, port=0) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        connection = await Http1Connection.connect("127.0.0.1", server.port)
        response = await request(connection, "GET", "/pid")
        assert response.body == b"%d" % os.getpid()
        await connection.close()
        port = server.port
    with pytest.raises(ConnectionError):
        await Http1Connection.connect("127.0.0.1", port)


async def test_the_application_may_be_named():
    async with Server("tests.support.apps:app", port=0) as server:
        connection = await Http1Connection.connect("127.0.0.1", server.port)
        assert (await request(connection, "GET", "/hello")).status == 200
        await connection.close()


async def test_it_tells_the_application_when_it_starts_and_stops():
    told = []

    async def app(scope, receive, send):
        while scope["type"] == "lifespan":
            kind = (await receive())["type"]
            told.append(kind)
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async with Server(app, port=0):
        assert told == ["lifespan.startup"]
    assert told == ["lifespan.startup", "lifespan.shutdown"]


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_every_version_on_one_port(host: str):
    async with Server(apps.app, host=host, port=0, enable_http3=True, **files()) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        http2 = await Http2Connection.connect(
            "127.0.0.1", server.port, tls=certificates().client_context("h2")
        )
        assert (await request(http2, "GET", "/hello")).status == 200
        await http2.close()
        http3 = await Http3Connection.connect("127.0.0.1", server.port)
        assert (await request(http3, "GET", "/hello")).status == 200
        await http3.close()


@pytest.mark.slow
async def test_one_version_only():
    async with Server(
        apps.app, port=0, http_version=HttpProtocolVersion.HTTP_2, **files()
    ) as server:
        context = certificates().client_context("h2")
        connection = await Http2Connection.connect("127.0.0.1", server.port, tls=context)
        assert (await request(connection, "GET", "/hello")).status == 200
        await connection.close()
        with pytest.raises(OSError, match=r"(?i)alert|reset|closed"):
            await Http1Connection.connect(
                "127.0.0.1", server.port, tls=certificates().client_context("http/1.1")
            )


async def test_requests_under_way_are_finished():
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            entered.set()
            await go_on.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"finished"})

    server = Server(app, port=0, lifespan="off")
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        connection = await Http1Connection.connect("127.0.0.1", server.port)
        asking = asyncio.create_task(request(connection, "GET", "/"))
        await entered.wait()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    assert (await asking).body == b"finished"
    await connection.close()


async def test_patience_has_an_end():
    cancelled = asyncio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    entered = asyncio.Event()
    async with Server(app, port=0, graceful_timeout=0.05, lifespan="off") as server:
        connection = await Http1Connection.connect("127.0.0.1", server.port)
        asking = asyncio.create_task(request(connection, "GET", "/"))
        await entered.wait()
    assert cancelled.is_set()
    assert (await asking).status == 503
    await connection.close()


# What is wrong


async def broken_lifespan(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def test_a_failing_start_closes_what_it_opened():
    server = Server(broken_lifespan, port=0)
    with pytest.raises(StartError, match="no database"):
        await server.__aenter__()


async def test_a_port_in_use():
    async with Server(apps.app, port=0) as server:
        with pytest.raises(StartError, match=f"127.0.0.1:{server.port}"):
            await Server(apps.app, port=server.port).__aenter__()


async def test_what_is_no_application():
    with pytest.raises(StartError, match="no_such_module"):
        await Server("no_such_module:app", port=0).__aenter__()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep_alve": 5}, "keep_alve=5: no such option; did you mean keep_alive?"),
        ({"keep_alive": "soon"}, "keep_alive=soon: must be a duration"),
        ({"workers": 2}, "workers=2: needs the application as 'module:attribute'"),
        ({"header_timeout": "x", "backlog": 0}, "backlog=0: must be between 1 and 65535"),
    ],
)
def test_options_that_make_no_sense(options, text):
    with pytest.raises(ConfigError) as caught:
        Server(apps.app, **options)
    assert text in str(caught.value)


def test_options_may_have_any_of_their_names_and_forms():
    server = Server(
        "main:app",
        timeout_keep_alive="3s",
        header=["x-a: b", "x-c: d"],
        access_log=False,
        header_timeout=2,
        uds="/run/app.sock",
    )
    config = server.config
    assert config.http1.keep_alive == 3.0
    assert config.http.headers == ("x-a: b", "x-c: d")
    assert config.log.access_log is False
    assert config.http1.header_timeout == 2.0
    assert config.listen.bind == ("unix:/run/app.sock",)


def test_the_package_offers_what_is_needed():
    assert asgiri.Server is Server
    assert asgiri.run.__module__ == "asgiri.server"
    assert asgiri.Config.__name__ == "Config"
    with pytest.raises(AttributeError):
        _ = asgiri.nothing


# Until told to stop


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=PROJECT,
        preexec_fn=die_with_parent,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )


def wait_line(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return line
    raise AssertionError("".join(seen))


OBJECT = """
    from asgiri.server import Server
    from tests.support.apps import app
    Server(app, port=0).run()
"""
NAME = """
    import asgiri
    asgiri.run("tests.support.apps:app", port=0, workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [OBJECT, NAME], ids=["object", "name"])
def test_run_serves_until_it_is_told_to_stop(code: str):
    process = start(code)
    try:
        line = wait_line(process, "listening on")
        assert "http://127.0.0.1:" in line
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output
        assert "Traceback" not in output
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ("'no_such_module:app'", 3, "no_such_module"),
        ("'tests.support.apps:app', port=0, workers='many'", 2, "workers=many: must be"),
        ("'tests.support.apps:app', certfile='/nowhere.pem'", 1, "/nowhere.pem"),
    ],
)
def test_run_says_what_is_wrong_in_one_line(arguments: str, status: int, text: str):
    process = start(f"import asgiri; asgiri.run({arguments})")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, output
    assert text in output
    assert "Traceback" not in output


def test_the_readme_shows_this():
    text = (Path(PROJECT) / "README.md").read_text()
    assert "async with Server(app, port=0) as server:" in text

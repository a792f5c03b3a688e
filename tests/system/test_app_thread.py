"""Applications in threads of their own: who hears what while a handler computes."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.client import request
from tests.support.fetch import fetch, http1
from tests.support.http3_client import Http3Connection
from tests.support.server import serve
from tests.support.websocket_client import open_websocket

pytestmark = pytest.mark.slow

COMPUTES = """
import os, time
from tests.support.apps import app as inner, respond

async def app(scope, receive, send):
    if scope.get("path") == "/compute":
        while not os.path.exists(os.environ["COMPUTE_UNTIL"]):
            sum(range(1000))
        await respond(send, b"computed")
    elif scope.get("path") == "/stand":
        stand_still()
    else:
        await inner(scope, receive, send)

def stand_still():
    time.sleep(3600)
"""
PING, PONG = 9, 10


@pytest.fixture
def done(tmp_path):
    """A file; its being there ends what handlers compute."""
    return tmp_path / "done"


def computing_app(tmp_path, done, **options):
    (tmp_path / "computes.py").write_text(COMPUTES)
    environment = {"COMPUTE_UNTIL": str(done)}
    return serve(
        "computes:app", app_dir=tmp_path, environment=environment, app_thread=True, **options
    )


async def test_peers_hear_of_the_server_while_a_handler_computes(tmp_path, done):
    """QUIC acknowledges, WebSockets answer pings."""
    async with (
        computing_app(tmp_path, done, workers=1, tls=True, http3=True) as server,
        http1(server) as carrier,
    ):
        quic = await Http3Connection.connect("127.0.0.1", server.port)
        websocket = await open_websocket(carrier, "/echo")
        computing = await quic.start("GET", "/compute")
        for number in range(10):
            await quic.ping()
            await websocket.send_frame(PING, b"%d" % number)
            frame = await websocket.read_frame()
            assert (frame.opcode, frame.payload) == (PONG, b"%d" % number)
        await websocket.send_text("later")
        reading = asyncio.create_task(computing.read())
        answer = asyncio.create_task(websocket.read_message())
        await quic.ping()
        assert not reading.done()
        assert not answer.done()
        done.touch()
        assert await reading == b"computed"
        assert await answer == "later"
        await quic.close()


async def test_nobody_waits_for_an_application_that_computes(tmp_path, done):
    """The master goes by the application's loop, not by the other one."""
    async with (
        computing_app(tmp_path, done, workers=2, balance="request") as server,
        http1(server) as first,
        http1(server) as second,
    ):
        computing = asyncio.create_task(fetch(server, "/compute"))
        await asyncio.sleep(0.1)
        for _ in range(5):
            assert (await fetch(server)).status == 200
            for client in (first, second):
                assert (await request(client, "GET", "/hello")).status == 200
        assert not computing.done()
        done.touch()
        assert (await computing).status == 200


async def test_a_worker_whose_application_stands_still_is_replaced(tmp_path, done):
    async with computing_app(tmp_path, done, workers=2, timeout=2) as server:
        standing = asyncio.create_task(fetch(server, "/stand"))
        line = await server.wait_line(r"worker\[(\d)\] pid=(\d+).*stands still for \d+ s; aborted")
        await server.wait_replaced(int(line[1]), int(line[2]))
        await asyncio.wait([standing])
        assert standing.exception() is not None
        assert "in stand_still" in server.log.text
        assert (await fetch(server)).status == 200

"""Bad networks between clients and the server, through proxies that lose, repeat, reorder, delay
and cut."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator

import pytest

from tests.support.admin import Admin
from tests.support.apps import pattern
from tests.support.client import ExchangeFailed, read_response, request
from tests.support.fetch import fetch
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.remote_app import remote_apps
from tests.support.server import Server, ServerOptions
from tests.support.shaper import CALM, CUT, STORM, TcpShaper, UdpShaper, Weather
from tests.support.websocket_client import open_websocket

pytestmark = pytest.mark.slow

HOST = "127.0.0.1"
PIECES = Weather(piece=7, jitter=0.0001)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = {"http3": True, "admin": "127.0.0.1:0", "quic_idle_timeout": 3}
    server = Server.start(ServerOptions(tls=True, options=options))
    server.log.wait_line(r"admin pid=\d+ gen=\d+: ready")
    yield server
    server.stop()


async def upload(connection, body: bytes) -> None:
    response = await request(connection, "POST", "/hash", body=body)
    assert json.loads(response.body)["sha256"] == hashlib.sha256(body).hexdigest()


async def download(connection, size: int) -> None:
    response = await request(connection, "GET", f"/bytes?size={size}")
    assert response.body == pattern(65536)[:size] if size <= 65536 else len(response.body) == size


# HTTP/3


async def test_http3_loses_nothing_in_a_storm(server: Server):
    """Requests, bodies both ways and a WebSocket on one connection."""
    async with UdpShaper(server.port, weather=STORM, seed=3) as network:
        connection = await Http3Connection.connect(HOST, network.port)
        websocket = await open_websocket(connection, "/")
        await asyncio.gather(
            upload(connection, os.urandom(100_000)),
            download(connection, 60_000),
            *(request(connection, "GET", "/pid") for _ in range(30)),
        )
        for number in range(10):
            await websocket.send_text(f"{number}")
            assert await websocket.read_message() == f"{number}"
        await connection.close()
        assert network.lost > 10
        assert network.repeated
        assert network.reordered


async def test_http3_goes_on_after_a_gap(server: Server):
    async with UdpShaper(server.port) as network:
        connection = await Http3Connection.connect(HOST, network.port)
        await request(connection, "GET", "/pid")
        network.weather = CUT
        waiting = asyncio.create_task(request(connection, "GET", "/pid"))
        while network.lost < 4:  # the request, and what it is repeated by
            await asyncio.sleep(0.01)
        network.weather = CALM
        assert (await waiting).status == 200
        await connection.close()


async def test_an_http3_client_whose_network_ends_leaves_nothing_behind(server: Server):
    async with UdpShaper(server.port) as network, remote_apps() as apps:
        connection = await Http3Connection.connect(HOST, network.port)
        await connection.start("GET", "/", apps.headers)
        call = await apps.wait_call()
        network.weather = CUT
        assert (await call.receive())["type"] == "http.request"
        assert (await call.receive())["type"] == "http.disconnect"  # after the idle timeout
        call.finish()
        connection.vanish()
    metrics = await Admin(server).metrics()
    # The application may return a moment after its connection has ended.
    while metrics.by("asgiri_connections_open", "version").get("3") or metrics.value(
        "asgiri_requests_active"
    ):
        await asyncio.sleep(0.05)
        metrics = await Admin(server).metrics()


# TCP


async def test_http2_and_http1_in_small_pieces_are_the_same(server: Server):
    """TLS records, frames and heads that are cut anywhere."""
    async with TcpShaper(server.port, weather=PIECES, seed=3) as network:
        http2 = await Http2Connection.connect(HOST, network.port, tls=server.client_context("h2"))
        http1 = await Http1Connection.connect(
            HOST, network.port, tls=server.client_context("http/1.1")
        )
        websocket = await open_websocket(http2, "/")
        await websocket.send_text("in pieces")
        assert await websocket.read_message() == "in pieces"
        for connection in (http2, http1):
            await upload(connection, os.urandom(2_000))
            await download(connection, 3_000)
            await connection.close()


async def test_http2_goes_on_after_a_standstill(server: Server):
    async with TcpShaper(server.port) as network:
        connection = await Http2Connection.connect(
            HOST, network.port, tls=server.client_context("h2")
        )
        network.weather = CUT
        waiting = asyncio.create_task(upload(connection, os.urandom(200_000)))
        assert (await fetch(server)).status == 200  # nobody else stands still
        assert not (await asyncio.wait([waiting], timeout=0.2))[0]
        network.weather = CALM
        await waiting
        await connection.close()


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_a_cut_is_told_to_the_application_and_hurts_nobody_else(server: Server, version: str):
    kind, alpn = {"1.1": (Http1Connection, "http/1.1"), "2": (Http2Connection, "h2")}[version]
    async with TcpShaper(server.port) as network, remote_apps() as apps:
        other = await kind.connect(HOST, server.port, tls=server.client_context(alpn))
        connection = await kind.connect(HOST, network.port, tls=server.client_context(alpn))
        exchange = await connection.start("POST", "/", apps.headers, body=None)
        call = await apps.wait_call()
        await exchange.send_body(b"half")
        assert (await call.receive())["body"] == b"half"
        network.cut()
        assert (await call.receive())["type"] == "http.disconnect"
        call.finish()
        with pytest.raises(ExchangeFailed):
            await read_response(exchange)
        assert (await request(other, "GET", "/pid")).status == 200
        await other.close()
        await connection.abort()

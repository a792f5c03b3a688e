"""Where a server can listen."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import request
from tests.support.fetch import fetch, http1
from tests.support.http1_client import Http1Connection
from tests.support.http3_client import Http3Connection
from tests.support.server import PROJECT, Server, ServerOptions, serve
from tests.support.stream import ByteStream

pytestmark = pytest.mark.slow


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


async def scope_over_unix(path: Path) -> dict[str, object]:
    import json

    async with await ByteStream.connect_unix(path) as stream:
        response = await request(Http1Connection(stream), "GET", "/scope")
        return json.loads(response.body)


@pytest.mark.parametrize("option", ["bind", "uds"])
async def test_a_unix_socket(tmp_path: Path, option: str):
    path = tmp_path / "socket"
    where = {"bind": f"unix:{path}"} if option == "bind" else {"bind": None, "uds": path}
    async with serve(**where):
        assert stat.S_ISSOCK(path.stat().st_mode)
        scope = await scope_over_unix(path)
        assert scope["server"] == [str(path), None]
        assert scope["client"] in (None, ["", 0])
    assert not path.exists()


async def test_a_unix_socket_that_a_crash_left_is_replaced(tmp_path: Path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serve(bind=f"unix:{path}"):
        assert (await scope_over_unix(path))["type"] == "http"


@needs_ipv6
async def test_ipv6():
    async with serve(bind="[::1]:0") as server:
        assert server.host == "::1"
        response = await fetch(server, "/scope")
        assert b'"::1"' in response.body


@needs_ipv6
async def test_a_wildcard_serves_ipv4_and_ipv6_by_two_binds():
    async with serve(bind=("0.0.0.0:0", "[::]:0")) as server:
        for host, port in server.addresses():
            address = "127.0.0.1" if host == "0.0.0.0" else "::1"
            connection = await Http1Connection.connect(address, port)
            assert (await request(connection, "GET", "/hello")).status == 200
            await connection.close()


async def test_several_binds_share_the_workers(tmp_path: Path):
    path = tmp_path / "socket"
    async with serve(bind=("127.0.0.1:0", "127.0.0.2:0", f"unix:{path}")) as server:
        addresses = server.addresses()
        assert [host for host, _ in addresses] == ["127.0.0.1", "127.0.0.2"]
        for host, port in addresses:
            connection = await Http1Connection.connect(host, port)
            response = await request(connection, "GET", "/scope")
            assert f'"server": ["{host}", {port}]'.encode() in response.body
            await connection.close()
        assert (await scope_over_unix(path))["type"] == "http"


async def test_a_wildcard_tells_the_address_that_was_used():
    async with serve(bind="0.0.0.0:0") as server:
        for host in ("127.0.0.1", "127.0.0.2"):
            async with http1(server, host) as connection:
                response = await request(connection, "GET", "/scope")
                assert f'"server": ["{host}", {server.port}]'.encode() in response.body


async def test_tcp_and_udp_have_one_port_number():
    async with serve(tls=True, http3=True) as server:
        assert server.addresses("udp") == server.addresses("tcp")
        response = await fetch(server)
        assert f'h3=":{server.port}"' in (response.header("alt-svc") or "")


async def test_http_3_may_have_a_port_of_its_own():
    async with serve(workers=1, tls=True, http3=True, quic_bind="127.0.0.1:0") as server:
        ((_, udp),) = server.addresses("udp")
        assert udp != server.port
        connection = await Http3Connection.connect("127.0.0.1", udp)
        response = await request(connection, "GET", "/hello")
        assert response.status == 200
        await connection.close()
        assert f'h3=":{udp}"' in ((await fetch(server)).header("alt-svc") or "")


async def test_host_and_port_name_an_address():
    async with serve(workers=1, bind=None, host="127.0.0.2", port=0) as server:
        ((host, port),) = server.addresses()
        assert host == "127.0.0.2"
        assert port != 8000
        assert (await fetch(server)).status == 200


async def test_an_inherited_descriptor_is_served():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = listener.getsockname()
    command = [sys.executable, "-m", "asgiri", "tests.support.apps:app", "--workers", "1"]
    process = await asyncio.create_subprocess_exec(
        *(*command, "--bind", f"fd://{listener.fileno()}"),
        pass_fds=[listener.fileno()],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    listener.close()
    try:
        connection = await Http1Connection.connect(*address)  # waits in the backlog
        assert (await request(connection, "GET", "/hello")).status == 200
        await connection.close()
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_a_port_stays_free_for_the_next_server():
    """No TIME_WAIT keeps an operator from restarting."""
    async with serve() as server:
        port = server.port
        await fetch(server)
    async with serve(bind=f"127.0.0.1:{port}") as server:
        assert (await fetch(server)).status == 200


def test_the_watcher_sees_addresses(tmp_path: Path):
    server = Server.start(ServerOptions(workers=1))
    try:
        assert server.host == "127.0.0.1"
        assert server.port > 0
        assert os.path.exists(f"/proc/{server.pid}")
    finally:
        server.stop()

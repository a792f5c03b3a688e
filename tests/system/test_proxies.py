"""Behind proxies: whose requests are they, and who is believed when he says so?"""

from __future__ import annotations

import ipaddress
import json
import signal

import pytest

from tests.support.client import request
from tests.support.fetch import fetch
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.proxies import haproxy, needs_haproxy, needs_nginx, nginx
from tests.support.server import Server, serve
from tests.support.stream import ByteStream, TlsStream

pytestmark = pytest.mark.slow

NOBODY = "192.0.2.0/24"
CLAIMS = [
    ("x-forwarded-for", "203.0.113.9"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "evil.example"),
    ("x-forwarded-prefix", "/evil"),
]
V1 = b"PROXY TCP4 203.0.113.9 203.0.113.1 5000 443\r\n"
V2 = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x29"
    + ipaddress.ip_address("2001:db8::9").packed
    + ipaddress.ip_address("2001:db8::1").packed
    + (5000).to_bytes(2)
    + (443).to_bytes(2)
    + b"\x04\x00\x02ok"
)
UNKNOWN = b"PROXY UNKNOWN\r\n"


async def scope_of(connection: Http1Connection | Http2Connection, headers=()) -> dict[str, object]:
    response = await request(connection, "GET", "/scope", headers)
    assert response.status == 200
    return json.loads(response.body)


async def announced(server: Server, header: bytes) -> ByteStream:
    stream = await ByteStream.connect(server.host, server.port)
    await stream.write(header)
    return stream


# Fields


async def test_claims_of_a_proxy_are_believed_and_those_of_others_ignored():
    async with serve(workers=1) as server:
        scope = json.loads((await fetch(server, "/scope", headers=CLAIMS[:3])).body)
        assert (scope["client"], scope["scheme"]) == (["203.0.113.9", 0], "https")
        assert ["host", "evil.example"] in scope["headers"]
    async with serve(workers=1, forwarded_allow_ips=NOBODY) as server:
        scope = json.loads((await fetch(server, "/scope", headers=CLAIMS)).body)
        assert (scope["client"][0], scope["scheme"]) == ("127.0.0.1", "http")
        assert ["host", "evil.example"] not in scope["headers"]
        assert scope["root_path"] == ""


async def test_claims_can_be_switched_off():
    async with serve(workers=1, proxy_headers=False) as server:
        scope = json.loads((await fetch(server, "/scope", headers=CLAIMS)).body)
        assert (scope["client"][0], scope["scheme"]) == ("127.0.0.1", "http")


async def test_forwarded_in_the_place_of_the_others():
    forwarded = [("forwarded", 'for="[2001:db8::9]:5000";proto=https;host=good.example')]
    async with serve(workers=1, proxy_headers_from="forwarded") as server:
        response = await fetch(server, "/scope", headers=[*CLAIMS, *forwarded])
        scope = json.loads(response.body)
        assert (scope["client"], scope["scheme"]) == (["2001:db8::9", 5000], "https")
        assert ["host", "good.example"] in scope["headers"]


@needs_nginx
async def test_behind_nginx(tmp_path):
    directives = (
        "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
        "proxy_set_header X-Forwarded-Proto https; proxy_set_header X-Forwarded-Host $http_host;"
        "proxy_set_header X-Forwarded-Prefix /app;"
    )
    async with (
        serve(workers=1, forwarded_allow_ips="127.0.0.1") as server,
        nginx(tmp_path, server.port, directives) as port,
    ):
        connection = await Http1Connection.connect("127.0.0.1", port)
        # What the client claims stands before what nginx says of it.
        scope = await scope_of(connection, [*CLAIMS, ("host", "good.example")])
        assert scope["client"] == ["203.0.113.9", 0]
        assert scope["scheme"] == "https"
        assert scope["root_path"] == "/app"
        assert ["host", "good.example"] in scope["headers"]
        await connection.close()


@needs_haproxy
async def test_behind_haproxy_that_speaks_http(tmp_path):
    directives = (
        "option forwardfor\n  http-request set-header X-Forwarded-Proto https\n"
        "  http-request set-header X-Forwarded-Host %[req.hdr(host)]"
    )
    async with (
        serve(workers=2, forwarded_allow_ips="127.0.0.2") as server,
        haproxy(
            tmp_path, server.port, mode="http", directives=directives, server="source 127.0.0.2"
        ) as port,
    ):
        connection = await Http1Connection.connect("127.0.0.1", port)
        for _ in range(3):
            scope = await scope_of(connection, [*CLAIMS[:1], ("host", "good.example")])
            assert scope["client"] == ["127.0.0.1", 0], "what HAProxy saw, not what was claimed"
            assert scope["scheme"] == "https"
        await connection.close()


# The PROXY protocol


@pytest.mark.parametrize("tls", [False, True])
async def test_connections_say_whose_they_are(tls: bool):
    async with serve(workers=2, tls=tls, proxy_protocol=True, balance="request") as server:
        context = server.client_context("http/1.1")
        for header, client in (
            (V1, ["203.0.113.9", 5000]),
            (V2, ["2001:db8::9", 5000]),
            (UNKNOWN, None),
        ):
            stream = await announced(server, header)
            if context is not None:
                stream = TlsStream(stream.socket, context, server.host)
                await stream.handshake()
            connection = Http1Connection(stream)
            for _ in range(2):
                scope = await scope_of(connection)
                own = list(stream.socket.getsockname()[:2])
                assert scope["client"] == (client or own)
                assert scope["scheme"] == ("https" if tls else "http")
            await connection.close()


async def test_a_header_in_pieces_with_the_request_behind_it():
    async with serve(workers=1, proxy_protocol=True) as server:
        stream = await ByteStream.connect(server.host, server.port)
        for piece in (V1[:3], V1[3:20], V1[20:] + b"GET /hello HTTP/1.1\r\nHost: x\r\n"):
            await stream.write(piece)
        await stream.write(b"connection: close\r\n\r\n")
        assert b"200 OK" in await stream.read_to_end()
        stream.close()


WRONG = [b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n", b"PROXY TCP4 no\r\n", V2[:13] + b"\xff\x00\x00"]
HELLO = V1 + b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def test_connections_without_a_header_are_closed():
    async with serve(workers=1, proxy_protocol=True, header_timeout=2) as server:
        for wrong in (*WRONG, V1[:10]):  # of the last one the rest never comes
            async with await announced(server, wrong) as stream:
                await stream.wait_closed()
        async with await announced(server, HELLO) as stream:
            assert (await stream.read_to_end()).startswith(b"HTTP/1.1 200")


async def test_who_is_no_proxy_is_closed():
    async with (
        serve(workers=1, proxy_protocol=True, proxy_protocol_allow_ips=NOBODY) as server,
        await announced(server, V1) as stream,
    ):
        await stream.wait_closed()


async def test_a_worker_without_patience_waits_for_no_header():
    async with (
        serve(workers=1, proxy_protocol=True, graceful_timeout=0) as server,
        await announced(server, V1[:10]) as stream,
        await announced(server, HELLO) as other,
    ):
        await other.read_to_end()
        server.send_signal(signal.SIGTERM)
        await stream.wait_closed()


@needs_haproxy
@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
async def test_behind_haproxy_that_passes_tls_on(tmp_path, option: str):
    async with (
        serve(workers=2, tls=True, proxy_protocol=True) as server,
        haproxy(tmp_path, server.port, mode="tcp", server=option) as port,
    ):
        context = server.client_context("h2")
        connection = await Http2Connection.connect("127.0.0.1", port, tls=context)
        stream = connection.stream
        scope = await scope_of(connection)
        assert scope["http_version"] == "2"
        assert scope["client"] == list(stream.socket.getsockname()[:2])
        await connection.close()

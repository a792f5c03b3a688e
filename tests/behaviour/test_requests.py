"""What a request becomes, and what its answer looks like, over every version."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.behaviour.conftest import Connect
from tests.behaviour.versions import Version
from tests.support.client import ClientConnection, read_response, request
from tests.support.remote_app import RemoteApps
from tests.support.server import Server


async def test_hello(connection: ClientConnection):
    response = await request(connection, "GET", "/hello")
    assert (response.status, response.body) == (200, b"Hello, world!")
    assert response.header("content-type") == "text/plain"
    assert response.header("content-length") == "13"


async def test_server_and_date_are_told(connection: ClientConnection):
    response = await request(connection, "GET", "/hello")
    assert response.header("server") == "asgiri"
    assert (response.header("date") or "").endswith(" GMT")


async def test_a_connection_serves_many_requests(connection: ClientConnection, version: Version):
    pids = {(await request(connection, "GET", "/pid")).body for _ in range(20)}
    # Only a cleartext HTTP/1.1 connection can be moved to another worker between its requests.
    assert len(pids) == 1 or (version.http_version == "1.1" and not version.tls)


async def test_exchanges_of_a_connection_go_on_side_by_side(
    connect: Connect, apps: RemoteApps, version: Version
):
    one = await connect()
    connections = [one] * 8 if version.multiplexed else [one, *[await connect() for _ in range(7)]]
    calls = {}
    for number, connection in enumerate(connections):
        exchange = await connection.start("GET", f"/{number}", apps.headers)
        call = await apps.wait_call()
        assert call.scope["path"] == f"/{number}"
        calls[call.scope["path"]] = (exchange, call)
    for path in reversed(calls):  # the first asked is answered last
        exchange, call = calls[path]
        await call.respond(200, path.encode())
        call.finish()
        assert (await read_response(exchange)).body == path.encode()


async def test_connections_are_spread_over_the_workers(connect: Connect, apps: RemoteApps):
    """A worker that runs late counts as if it had up to 16 requests more, so ask for as many. They
    stay open: between requests, connections of busy workers may wait in the master.
    """
    asked = []
    pids: set[int] = set()
    while len(pids) < 2 and len(asked) < 80:
        exchange = await (await connect()).start("GET", "/", apps.headers)
        call = await apps.wait_call()
        asked.append((exchange, call))
        pids.add(call.pid)
    for exchange, call in asked:
        await call.respond(200, b"")
        call.finish()
        assert (await read_response(exchange)).status == 200
    assert len(pids) == 2


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"])
async def test_methods_are_passed_as_they_are(connection: ClientConnection, method: str):
    response = await request(connection, method, "/scope")
    assert json.loads(response.body)["method"] == method


async def test_the_scope_says_what_asgi_asks_for(
    connection: ClientConnection, server: Server, version: Version
):
    fields = [("user-agent", "test"), ("x-a", "1"), ("X-A", "2"), ("x-empty", "")]
    response = await request(connection, "GET", "/scope?a=1&b=%20c", fields)
    scope = json.loads(response.body)
    assert scope["type"] == "http"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.5"}
    assert scope["http_version"] == version.http_version
    assert scope["scheme"] == ("https" if version.tls else "http")
    assert (scope["path"], scope["raw_path"]) == ("/scope", "/scope")
    assert scope["query_string"] == "a=1&b=%20c"
    assert scope["root_path"] == ""
    assert scope["client"] == list(connection.local_address)
    assert scope["server"] == ["127.0.0.1", server.port]
    headers = [tuple(field) for field in scope["headers"]]
    assert ("host", "localhost") in headers
    assert [value for name, value in headers if name == "x-a"] == ["1", "2"]
    assert ("x-empty", "") in headers
    assert not [name for name, _ in headers if name.startswith(":")]
    assert ("tls" in scope["extensions"]) == version.tls


async def test_unicode_paths_reach_the_application(connection: ClientConnection, apps: RemoteApps):
    exchange = await connection.start("GET", "/%E2%82%AC/a%2Fb?q=%E2%82%AC", apps.headers)
    call = await apps.wait_call()
    assert call.scope["path"] == "/€/a/b"
    assert call.scope["raw_path"] == b"/%E2%82%AC/a%2Fb"
    assert call.scope["query_string"] == b"q=%E2%82%AC"
    await call.respond()
    call.finish()
    await read_response(exchange)


async def test_bytes_that_are_no_utf8_do_not_fail(connection: ClientConnection, apps: RemoteApps):
    exchange = await connection.start("GET", "/%ff%FE", apps.headers)
    call = await apps.wait_call()
    assert call.scope["raw_path"] == b"/%ff%FE"
    await call.respond()
    call.finish()
    assert (await read_response(exchange)).status == 200


async def test_lifespan_state_is_shared_but_copied_for_each_request(connection: ClientConnection):
    answers = [json.loads((await request(connection, "GET", "/state")).body) for _ in range(5)]
    assert all(answer["copied_per_request"] for answer in answers)
    for pid in {answer["pid"] for answer in answers}:  # a busy worker may hand the connection on
        calls = [answer["calls"] for answer in answers if answer["pid"] == pid]
        assert calls == list(range(calls[0], calls[0] + len(calls)))


async def test_response_fields_arrive_in_order_and_lower_case(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.respond(
        201, b"", [("Set-Cookie", "a=1"), ("set-cookie", "b=2"), ("X-Latin", b"\xe9"), ("x-e", "")]
    )
    call.finish()
    response = await read_response(exchange)
    assert response.status == 201
    assert response.header_values("set-cookie") == ["a=1", "b=2"]
    assert response.header("x-latin") == "é"
    assert response.header("x-e") == ""


async def test_connection_specific_response_fields_never_leave_over_2_and_3(
    connection: ClientConnection, apps: RemoteApps, version: Version
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    fields = [("Keep-Alive", "timeout=5"), ("Upgrade", "x"), ("Proxy-Connection", "close")]
    await call.respond(200, b"x", [*fields, ("Transfer-Encoding", "chunked")])
    call.finish()
    response = await read_response(exchange)
    assert response.body == b"x"
    if version.multiplexed:
        for name in ("keep-alive", "upgrade", "proxy-connection", "transfer-encoding"):
            assert response.header(name) is None


@pytest.mark.slow
async def test_many_connections_at_once(connect: Connect):
    connections = await asyncio.gather(*(connect() for _ in range(50)))
    responses = await asyncio.gather(*(request(c, "GET", "/hello") for c in connections))
    assert {response.status for response in responses} == {200}


async def test_a_client_that_vanishes_disturbs_nobody(connect: Connect):
    leaving, staying = await connect(), await connect()
    await leaving.start("POST", "/echo", body=None)
    await leaving.abort()
    assert (await request(staying, "GET", "/hello")).status == 200


async def test_requests_after_a_cancelled_one_are_served(
    connect: Connect, apps: RemoteApps, version: Version
):
    connection = await connect()
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.receive()  # the empty body
    await exchange.cancel()
    assert (await call.receive())["type"] == "http.disconnect"
    call.finish()
    if not version.multiplexed:
        connection = await connect()
    assert (await request(connection, "GET", "/hello")).status == 200

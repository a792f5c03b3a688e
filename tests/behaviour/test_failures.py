"""Broken applications and clients that give up, over every version."""

from __future__ import annotations

import contextlib

import pytest

from tests.behaviour.conftest import Connect
from tests.behaviour.versions import Version
from tests.support.client import (
    ClientConnection,
    ExchangeFailed,
    FailureKind,
    read_response,
    request,
)
from tests.support.remote_app import AppCall, RemoteApps, RemoteRaised
from tests.support.server import Server

RESET_CODES = {"1.1": None, "2": 2, "3": 0x102}
"""INTERNAL_ERROR, H3_INTERNAL_ERROR; HTTP/1.1 can only close."""


async def test_an_error_before_the_response_gives_500(connection: ClientConnection, server: Server):
    start = server.log.end
    response = await request(connection, "GET", "/raise")
    assert response.status == 500
    assert b"before the response" not in response.body
    await server.wait_line("BrokenAppError: before the response started", start)
    assert (await request(connection, "GET", "/hello")).status == 200


async def test_an_error_after_the_start_breaks_the_exchange(
    connection: ClientConnection, server: Server, version: Version
):
    start = server.log.end
    exchange = await connection.start("GET", "/raise-late")
    with pytest.raises(ExchangeFailed) as failure:
        await read_response(exchange)
    kind = FailureKind.RESET if version.multiplexed else FailureKind.CLOSED
    assert (failure.value.kind, failure.value.code) == (kind, RESET_CODES[version.http_version])
    await server.wait_line("BrokenAppError: after the response started", start)


async def test_a_broken_exchange_leaves_its_neighbours_alone(
    connect: Connect, apps: RemoteApps, version: Version
):
    connection = await connect()
    neighbour = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.start_response()
    await call.send_body(b"one ")
    with pytest.raises(ExchangeFailed):
        await request(connection if version.multiplexed else await connect(), "GET", "/raise-late")
    await call.send_body(b"two", more=False)
    call.finish()
    assert (await read_response(neighbour)).body == b"one two"


async def test_no_response_at_all_gives_500(connection: ClientConnection):
    assert (await request(connection, "GET", "/nothing")).status == 500
    assert (await request(connection, "GET", "/hello")).status == 200


async def test_a_response_without_its_end_breaks_the_exchange(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.start_response()
    await call.send_body(b"part")
    call.finish()
    with pytest.raises(ExchangeFailed):
        await read_response(exchange)


BAD_MESSAGES = {
    "body first": [{"type": "http.response.body", "body": b""}],
    "unknown type": [{"type": "http.response.nothing"}],
    "no type": [{"status": 200}],
    "no status": [{"type": "http.response.start"}],
    "status is text": [{"type": "http.response.start", "status": "200"}],
    "status out of range": [{"type": "http.response.start", "status": 99}],
    "informational status": [{"type": "http.response.start", "status": 101}],
    "headers are text": [{"type": "http.response.start", "status": 200, "headers": [("a", "b")]}],
    "newline in a value": [
        {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b\r\nc: d")]}
    ],
    "space in a name": [{"type": "http.response.start", "status": 200, "headers": [(b"a b", b"")]}],
    "content-length is text": [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"x")]}
    ],
    "websocket message": [{"type": "websocket.accept"}],
    "trailers unasked": [{"type": "http.response.trailers", "headers": []}],
    "two starts": [
        {"type": "http.response.start", "status": 200},
        {"type": "http.response.start", "status": 200},
    ],
}


@pytest.mark.parametrize("messages", BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys())
async def test_a_message_that_breaks_asgi_raises_in_the_application(
    connection: ClientConnection, apps: RemoteApps, messages: list[dict[str, object]]
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    *good, bad = messages
    for message in good:
        await call.send(message)
    with pytest.raises(RemoteRaised) as raised:
        await call.send(bad)
    assert "AppError" in raised.value.bases
    if not good:  # nothing has been sent: the application may still do better
        await call.respond(200, b"mended")
    call.finish()
    if good:
        with pytest.raises(ExchangeFailed):
            await read_response(exchange)
    else:
        assert (await read_response(exchange)).body == b"mended"


async def test_a_message_after_the_end_raises_in_the_application(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.respond(200, b"done")
    assert (await read_response(exchange)).body == b"done"
    with pytest.raises(RemoteRaised) as raised:
        await call.send_body(b"more", more=False)
    assert {"AppError", "OSError"} & set(raised.value.bases)
    call.finish()


# Clients that give up


async def cancelled_call(connection: ClientConnection, apps: RemoteApps) -> AppCall:
    """A call whose client has gone, with the response begun."""
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.receive()
    await call.start_response()
    await call.send_body(b"part")
    assert await exchange.read() == b"part"
    receiving = call.start_receive()
    await exchange.cancel()
    assert (await receiving)["type"] == "http.disconnect"
    return call


async def test_disconnect_is_seen_by_a_receive_that_waits(
    connection: ClientConnection, apps: RemoteApps
):
    (await cancelled_call(connection, apps)).finish()


async def test_disconnect_is_told_to_every_further_receive(
    connection: ClientConnection, apps: RemoteApps
):
    call = await cancelled_call(connection, apps)
    assert (await call.receive())["type"] == "http.disconnect"
    call.finish()


async def test_sending_after_a_disconnect_raises_oserror(
    connection: ClientConnection, apps: RemoteApps
):
    call = await cancelled_call(connection, apps)
    with pytest.raises(RemoteRaised) as raised:
        await call.send_body(b"more")
    assert "OSError" in raised.value.bases
    call.finish()


async def test_an_error_after_a_disconnect_is_nobodys_500(
    connection: ClientConnection, apps: RemoteApps, connect: Connect
):
    call = await cancelled_call(connection, apps)
    call.fail("client has gone")
    await call.wait_ended()
    assert (await request(await connect(), "GET", "/hello")).status == 200


async def test_a_send_that_waits_for_a_slow_client_ends_when_it_goes(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.start_response()
    sending = call.start_send(
        {"type": "http.response.body", "body": bytes(64 << 20), "more_body": True}
    )
    await exchange.head()
    assert not sending.done()
    await exchange.cancel()
    with contextlib.suppress(RemoteRaised):
        await sending
    with pytest.raises(RemoteRaised) as raised:
        await call.send_body(b"more")
    assert "OSError" in raised.value.bases
    call.finish()


async def test_an_upload_that_is_given_up_is_a_disconnect(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("POST", "/", apps.headers, body=None)
    call = await apps.wait_call()
    await exchange.send_body(b"first")
    assert (await call.receive())["body"] == b"first"
    receiving = call.start_receive()
    await exchange.cancel()
    assert (await receiving)["type"] == "http.disconnect"
    call.finish()


async def test_the_end_of_the_connection_is_a_disconnect(
    connection: ClientConnection, apps: RemoteApps, version: Version
):
    await connection.start("POST", "/", apps.headers, body=None)
    call = await apps.wait_call()
    receiving = call.start_receive()
    # Nobody tells a server that a QUIC client has vanished; it would wait for the idle timeout.
    await (connection.close() if version.http_version == "3" else connection.abort())
    assert (await receiving)["type"] == "http.disconnect"
    call.finish()


async def test_an_orderly_close_is_a_disconnect(connection: ClientConnection, apps: RemoteApps):
    await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.receive()
    receiving = call.start_receive()
    await connection.close()
    assert (await receiving)["type"] == "http.disconnect"
    call.finish()

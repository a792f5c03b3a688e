"""Bodies both ways, whole and in parts, large and absent, over every version."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from tests.behaviour.conftest import Connect
from tests.behaviour.versions import Version
from tests.support.apps import pattern
from tests.support.client import ClientConnection, ExchangeFailed, read_response, request
from tests.support.remote_app import RemoteApps, RemoteRaised


@pytest.mark.parametrize(
    "size", [0, 1, 1000, 65536, pytest.param(1_000_000, marks=pytest.mark.slow)]
)
async def test_a_body_is_echoed(connection: ClientConnection, size: int):
    response = await request(connection, "POST", "/echo", body=pattern(size))
    assert response.body == pattern(size)


async def test_both_sides_stream_in_turns(connection: ClientConnection, apps: RemoteApps):
    """Each part is on its way before the next one exists: nothing waits for a buffer to fill."""
    exchange = await connection.start("POST", "/", apps.headers, body=None)
    call = await apps.wait_call()
    await call.start_response()
    for number in range(5):
        await exchange.send_body(b"question %d" % number)
        message = await call.receive()
        assert (message["body"], message["more_body"]) == (b"question %d" % number, True)
        await call.send_body(b"answer %d" % number)
        assert await exchange.read() == b"answer %d" % number
    await exchange.end_body()
    message = await call.receive()
    assert (message.get("body", b""), message.get("more_body", False)) == (b"", False)
    await call.send_body(b"", more=False)
    assert await exchange.read() == b""
    call.finish()


async def test_the_head_leaves_before_the_first_part(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.start_response(202, [("x-early", "yes")])
    head = await exchange.head()
    assert (head.status, head.header("x-early")) == (202, "yes")
    await call.send_body(b"late", more=False)
    call.finish()
    assert await exchange.read() == b"late"


async def test_a_response_may_be_complete_before_the_body_arrived(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("POST", "/", apps.headers, body=None)
    call = await apps.wait_call()
    await call.respond(413, b"too much")
    call.finish()
    response = await read_response(exchange)
    assert (response.status, response.body) == (413, b"too much")


@pytest.mark.slow
async def test_a_large_upload_arrives_whole(connection: ClientConnection):
    body = pattern(8 << 20)
    response = await request(connection, "POST", "/hash", body=body)
    told = json.loads(response.body)
    assert (told["size"], told["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [0, 1])
async def test_a_large_download_arrives_whole(connection: ClientConnection, chunked: int):
    size = 8 << 20
    response = await request(
        connection, "GET", f"/bytes?size={size}&part=1048576&chunked={chunked}"
    )
    expected = hashlib.sha256(pattern(1 << 20) * 8).hexdigest()
    assert hashlib.sha256(response.body).hexdigest() == expected
    assert response.header("content-length") == (None if chunked else str(size))


async def test_head_has_the_fields_of_get_and_no_body(connection: ClientConnection):
    response = await request(connection, "HEAD", "/hello")
    assert (response.status, response.body) == (200, b"")
    assert response.header("content-length") == "13"
    assert (await request(connection, "HEAD", "/echo")).body == b""
    assert (await request(connection, "GET", "/hello")).body == b"Hello, world!"


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body_have_none(
    connection: ClientConnection, apps: RemoteApps, status: int
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.respond(status, b"" if status == 204 else b"not sent", [("etag", '"a"')])
    call.finish()
    response = await read_response(exchange)
    assert (response.status, response.body, response.header("etag")) == (status, b"", '"a"')
    assert (await request(connection, "GET", "/hello")).status == 200


async def test_the_length_of_a_response_sent_at_once_needs_no_field(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.respond(200, b"12345")
    call.finish()
    assert (await read_response(exchange)).body == b"12345"


async def failed_or_500(exchange: object) -> None:
    """What a client may see of an application that breaks its word."""
    try:
        response = await read_response(exchange)  # type: ignore[arg-type]
    except ExchangeFailed:
        return
    assert response.status == 500


async def test_more_than_content_length_is_the_applications_error(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.start_response(200, [("content-length", "3")])
    with pytest.raises(RemoteRaised, match="content-length"):
        await call.send_body(b"four", more=False)
    call.fail()
    await failed_or_500(exchange)


async def test_less_than_content_length_is_the_applications_error(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.start_response(200, [("content-length", "5")])
    await call.send_body(b"1234", more=True)
    await exchange.read()
    with pytest.raises(RemoteRaised, match="content-length"):
        await call.send_body(b"", more=False)
    call.fail()
    with pytest.raises(ExchangeFailed):
        await read_response(exchange)


async def test_trailing_body_of_a_request_with_content_length_is_counted(
    connection: ClientConnection, version: Version
):
    exchange = await connection.start("POST", "/hash", [("content-length", "6")], body=None)
    await exchange.send_body(b"abc")
    await exchange.send_body(b"def")
    await exchange.end_body()
    response = await read_response(exchange)
    assert json.loads(response.body)["size"] == 6


@pytest.mark.slow
async def test_many_bodies_at_once(connect: Connect, version: Version):
    count = 8
    one = await connect()
    connections = [one] * count if version.multiplexed else [await connect() for _ in range(count)]
    bodies = [pattern(100_000 + number) for number in range(count)]
    responses = await asyncio.gather(
        *(request(c, "POST", "/echo", body=b) for c, b in zip(connections, bodies, strict=True))
    )
    assert [response.body for response in responses] == bodies


async def test_after_the_body_receive_waits_for_the_disconnect(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("POST", "/", apps.headers, body=b"all")
    call = await apps.wait_call()
    assert await call.receive_all() == b"all"
    receiving = call.start_receive()
    await call.start_response()
    await call.send_body(b"some")
    assert await exchange.read() == b"some"
    assert not receiving.done()
    await call.send_body(b"", more=False)
    assert (await receiving)["type"] == "http.disconnect"
    call.finish()


async def test_an_application_need_not_read_the_body(
    connection: ClientConnection, version: Version
):
    response = await request(connection, "POST", "/hello", body=pattern(300_000))
    assert response.status == 200
    if version.multiplexed:
        assert (await request(connection, "GET", "/hello")).status == 200

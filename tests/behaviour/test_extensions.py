"""Early hints and trailers, over every version."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.behaviour.conftest import Connect
from tests.behaviour.versions import Version
from tests.support.apps import pattern
from tests.support.client import ClientConnection, read_response, request
from tests.support.remote_app import RemoteApps, RemoteRaised


async def test_early_hints_arrive_before_the_response(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    assert "http.response.early_hint" in call.scope["extensions"]
    for name in ("one", "two"):
        link = f"</{name}.css>; rel=preload; as=style"
        await call.send({"type": "http.response.early_hint", "links": [link.encode()]})
        hint = await exchange.wait_informational()
        assert (hint.status, hint.header("link")) == (103, link)
    await call.respond(200, b"page")
    call.finish()
    assert (await read_response(exchange)).body == b"page"


async def test_early_hints_after_the_response_began_are_refused(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    await call.start_response()
    with pytest.raises(RemoteRaised):
        await call.send({"type": "http.response.early_hint", "links": [b"</a>"]})
    await call.send_body(b"", more=False)
    call.finish()
    assert (await read_response(exchange)).status == 200


async def test_trailers_arrive_when_the_client_takes_them(connection: ClientConnection):
    response = await request(connection, "GET", "/trailers", [("te", "trailers")])
    digest = hashlib.sha256(b"body").hexdigest().encode()
    assert (response.body, response.trailers) == (b"body", [(b"x-digest", digest)])
    assert (await request(connection, "GET", "/hello")).status == 200


async def test_trailers_are_not_offered_to_a_client_that_does_not_take_them(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", apps.headers)
    call = await apps.wait_call()
    assert "http.response.trailers" not in call.scope["extensions"]
    await call.respond(200, b"page")
    call.finish()
    assert (await read_response(exchange)).trailers == []


async def test_trailers_may_come_in_several_messages(
    connection: ClientConnection, apps: RemoteApps
):
    exchange = await connection.start("GET", "/", [*apps.headers, (b"te", b"trailers")])
    call = await apps.wait_call()
    assert "http.response.trailers" in call.scope["extensions"]
    await call.start_response(200, [], trailers=True)
    await call.send_body(b"body", more=False)
    for name, more in ((b"x-one", True), (b"x-two", False)):
        await call.send(
            {"type": "http.response.trailers", "headers": [(name, b"1")], "more_trailers": more}
        )
    call.finish()
    assert (await read_response(exchange)).trailers == [(b"x-one", b"1"), (b"x-two", b"1")]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "file"
    path.write_bytes(pattern(1_000_000))
    return path


async def test_a_file_is_sent_by_its_path(connection: ClientConnection, file: Path):
    response = await request(connection, "GET", "/pathsend", [("x-file", str(file))])
    assert response.body == file.read_bytes()
    assert response.header("content-length") == "1000000"
    assert (await request(connection, "HEAD", "/pathsend", [("x-file", str(file))])).body == b""
    assert (await request(connection, "GET", "/hello")).status == 200


async def test_an_open_file_is_sent_in_parts(connection: ClientConnection, file: Path):
    response = await request(connection, "GET", "/zerocopysend", [("x-file", str(file))])
    assert response.body == b"<" + file.read_bytes() + b">"
    assert (await request(connection, "GET", "/hello")).status == 200


async def test_request_trailers_end_the_body(connection: ClientConnection, apps: RemoteApps):
    exchange = await connection.start("POST", "/", apps.headers, body=None)
    call = await apps.wait_call()
    await exchange.send_body(b"body")
    await exchange.end_body([("x-checksum", "1")])
    assert await call.receive_all() == b"body"
    await call.respond(200, b"read")
    call.finish()
    assert (await read_response(exchange)).body == b"read"


async def test_extensions_are_offered_only_where_they_work(
    connect: Connect, apps: RemoteApps, version: Version
):
    exchange = await (await connect()).start("GET", "/", apps.headers)
    call = await apps.wait_call()
    extensions = set(call.scope["extensions"])
    assert "http.response.push" not in extensions
    assert "http.response.debug" not in extensions
    assert ("tls" in extensions) == version.tls
    assert {"http.response.pathsend", "http.response.zerocopysend"} <= extensions
    await call.respond()
    call.finish()
    await read_response(exchange)

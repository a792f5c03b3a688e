"""Starlette, FastAPI, Django, Channels, Quart and Flask run unchanged, over every version."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.behaviour.versions import connect_http1, connect_http2, connect_http3
from tests.support.apps import pattern
from tests.support.client import ClientConnection, request
from tests.support.server import Server, serve
from tests.support.websocket_client import open_websocket

pytestmark = pytest.mark.slow

APPS = Path(__file__).parents[1] / "support" / "framework_apps"
CONNECT: dict[str, Callable[..., Awaitable[ClientConnection]]] = {
    "1.1": connect_http1,
    "2": connect_http2,
    "3": connect_http3,
}


@dataclass(frozen=True, slots=True)
class Framework:
    package: str
    has_rooms: bool = True
    """Serves WebSockets."""

    @property
    def served_file(self) -> Path:
        package = "django" if self.package == "channels" else self.package
        return APPS / f"{package}_app.py"


FRAMEWORKS = [
    Framework("starlette"),
    Framework("fastapi"),
    Framework("django", has_rooms=False),
    Framework("channels"),
    Framework("quart"),
    Framework("flask", has_rooms=False),
]


@pytest.fixture(params=FRAMEWORKS, ids=lambda framework: framework.package)
async def framework(request: pytest.FixtureRequest) -> Framework:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(request.param.package, reason=f"{request.param.package} is missing")
    return request.param


@pytest.fixture
async def server(framework: Framework) -> AsyncIterator[Server]:
    app = f"tests.support.framework_apps.{framework.package}_app:app"
    async with serve(app, workers=2, tls=True, http3=True) as server:
        server.allowed_in_log.append("framework error on purpose|Internal Server Error: /fail")
        yield server


async def test_an_application_works_over_every_version(server: Server, framework: Framework):
    """One server for all: starting it costs more than the requests."""
    for version, connect in CONNECT.items():
        connection = await connect(server)
        try:
            await check_hello(connection, version)
            await check_upload(connection)
            await check_stream(connection)
            await check_file(connection, framework)
            if framework.package == "fastapi":
                await check_item(connection)
            if framework.package == "starlette":
                await check_static_files(connection)
        finally:
            await connection.close()
        connection = await connect(server)
        assert (await request(connection, "GET", "/fail")).status == 500
        await connection.close()
        if framework.has_rooms:
            await check_room(await connect(server))


async def check_hello(connection: ClientConnection, version: str) -> None:
    response = await request(connection, "GET", f"/hello/{version}")
    assert response.body == f"hello {version}".encode()
    assert (await request(connection, "GET", "/nowhere")).status == 404
    assert (await request(connection, "HEAD", "/nowhere")).body == b""


async def check_upload(connection: ClientConnection) -> None:
    content = pattern(3_000_000)
    body = (
        b'--cut\r\ncontent-disposition: form-data; name="name"\r\n\r\nnumbers\r\n'
        b'--cut\r\ncontent-disposition: form-data; name="file"; filename="n.txt"\r\n\r\n'
        + content
        + b"\r\n--cut--\r\n"
    )
    # Django reads no form without a content-length, and HTTP/3 clients may leave it out.
    length = ("content-length", str(len(body)))
    fields = [("content-type", "multipart/form-data; boundary=cut"), length]
    response = await request(connection, "POST", "/upload", fields, body)
    digest = hashlib.sha256(content).hexdigest()
    assert json.loads(response.body) == {"name": "numbers", "size": len(content), "sha256": digest}
    length = ("content-length", str(len(content)))
    response = await request(connection, "PUT", "/raw", [length], content)
    assert json.loads(response.body) == {"size": len(content)}


async def check_stream(connection: ClientConnection) -> None:
    response = await request(connection, "GET", "/stream")
    assert response.body == "".join(f"{number}\n" for number in range(1000)).encode()


async def check_file(connection: ClientConnection, framework: Framework) -> None:
    response = await request(connection, "GET", "/file")
    assert response.body == framework.served_file.read_bytes()


async def check_item(connection: ClientConnection) -> None:
    body = b'{"name": "apple", "price": 1.5}'
    response = await request(
        connection, "POST", "/item", [("content-type", "application/json")], body
    )
    assert json.loads(response.body) == {"name": "APPLE", "price": 3.0}
    response = await request(connection, "POST", "/item", [("content-type", "x/y")], b"{}")
    assert response.status == 422


async def check_static_files(connection: ClientConnection) -> None:
    content = (APPS / "starlette_app.py").read_bytes()
    response = await request(connection, "GET", "/static/starlette_app.py")
    assert response.body == content
    known = ("if-none-match", response.header("etag") or "")
    response = await request(connection, "GET", "/static/starlette_app.py", [known])
    assert (response.status, response.body) == (304, b"")
    part = ("range", "bytes=10-19")
    response = await request(connection, "GET", "/static/starlette_app.py", [part])
    assert (response.status, response.body) == (206, content[10:20])
    assert (await request(connection, "HEAD", "/static/starlette_app.py")).body == b""
    assert (await request(connection, "GET", "/static/../test_frameworks.py")).status == 404


async def check_room(connection: ClientConnection) -> None:
    socket = await open_websocket(connection, "/room/blue", subprotocols=("chat",), deflate=True)
    assert socket.subprotocol == "chat"
    for text in ("hello", "€" * 10_000):
        await socket.send_text(text)
        assert await socket.read_message() == f"blue: {text}"
    await socket.send_text("leave")
    assert await socket.read_close() == (4000, "bye")
    await socket.send_close(4000)
    await socket.wait_ended()
    await connection.close()

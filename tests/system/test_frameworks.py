"""Starlette, FastAPI and Django run unchanged, over every version."""

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
    has_lifespan: bool = True


FRAMEWORKS = [Framework("starlette"), Framework("fastapi"), Framework("django", has_lifespan=False)]


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
        finally:
            await connection.close()
        connection = await connect(server)
        assert (await request(connection, "GET", "/fail")).status == 500
        await connection.close()


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
    assert response.body == (APPS / f"{framework.package}_app.py").read_bytes()


async def check_item(connection: ClientConnection) -> None:
    body = b'{"name": "apple", "price": 1.5}'
    response = await request(
        connection, "POST", "/item", [("content-type", "application/json")], body
    )
    assert json.loads(response.body) == {"name": "APPLE", "price": 3.0}
    response = await request(connection, "POST", "/item", [("content-type", "x/y")], b"{}")
    assert response.status == 422

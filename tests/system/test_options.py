"""Options that change what an application sees or how it is loaded."""

from __future__ import annotations

import asyncio
import json
import ssl
import textwrap
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.behaviour.versions import connect_http1, connect_http2, connect_http3
from tests.support.admin import Admin
from tests.support.certificates import certificates
from tests.support.client import request
from tests.support.fetch import fetch
from tests.support.http1_client import Http1Connection
from tests.support.server import serve

pytestmark = pytest.mark.slow


async def scope_of(path: str = "/scope", **options: Any) -> dict[str, Any]:
    app = options.pop("app", "tests.support.apps:app")
    async with serve(app, workers=1, **options) as server:
        response = await fetch(server, path)
        assert response.status == 200, response
        scope: dict[str, Any] = json.loads(response.body)
        return scope


async def test_root_path_is_put_before_the_path():
    scope = await scope_of(root_path="/mounted")
    assert scope["root_path"] == "/mounted"
    assert (scope["path"], scope["raw_path"]) == ("/mounted/scope", "/mounted/scope")


@pytest.mark.parametrize(
    ("app", "options"),
    [
        ("tests.support.apps:factory", {"factory": True}),
        ("tests.support.apps:double_callable", {}),
        ("tests.support.apps:Holder.inner.app", {}),
        ("tests.support.apps:without_lifespan", {}),
        ("tests.support.apps:raising_lifespan", {"lifespan": "off"}),
    ],
)
async def test_applications_of_every_shape_are_served(app: str, options: dict[str, Any]):
    assert (await scope_of(app=app, **options))["type"] == "http"


@pytest.mark.parametrize("lifespan", ["auto", "off"])
async def test_lifespan_can_be_switched_off(lifespan: str):
    scope = await scope_of(lifespan=lifespan)
    assert ("calls" in scope.get("state", {})) == (lifespan == "auto")


async def test_an_application_is_found_in_app_dir(tmp_path: Path):
    (tmp_path / "elsewhere.py").write_text(
        textwrap.dedent("""
            from tests.support.apps import app as application
        """)
    )
    scope = await scope_of(app="elsewhere:application", app_dir=tmp_path)
    assert scope["type"] == "http"


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_event_loops(loop: str):
    assert (await scope_of(loop=loop))["type"] == "http"


async def test_headers_of_the_server_can_be_left_out_and_added():
    async with serve(
        workers=1, server_header=False, date_header=False, header=("X-One: 1", "X-Two: 2")
    ) as server:
        response = await fetch(server)
        assert response.header("server") is None
        assert response.header("date") is None
        assert (response.header("x-one"), response.header("x-two")) == ("1", "2")


async def test_the_access_log_has_one_line_for_each_request(tmp_path: Path):
    file = tmp_path / "access.log"
    async with serve(workers=2, access_log=True, access_logfile=file) as server:
        for number in range(5):
            await fetch(server, f"/hello?n={number}")
        await fetch(server, "/missing%1b[31m")
    lines = file.read_text().splitlines()
    assert len(lines) == 6
    assert all(" 200 " in line for line in lines[:5])
    assert " 404 " in lines[5]
    assert "\x1b" not in lines[5]


async def test_lines_of_one_connection_share_its_id_over_every_version(tmp_path: Path):
    file = tmp_path / "access.log"
    options = {"access_log": True, "access_logfile": file, "http3": True}
    async with serve(
        workers=1, tls=True, **options, access_logformat="%(H)s %(c)s %(i)s"
    ) as server:
        for connect in (connect_http1, connect_http2, connect_http3):
            for _ in range(2):
                connection = await connect(server)
                for _ in range(2):
                    await request(connection, "GET", "/hello")
                await connection.close()
    seen = [line.split() for line in file.read_text().splitlines()]
    assert len({request for _, _, request in seen}) == 12
    connections = {connection: version for version, connection, _ in seen}
    assert sorted(connections.values()) == ["HTTP/1.1"] * 2 + ["HTTP/2"] * 2 + ["HTTP/3"] * 2
    assert all(request.startswith(f"{connection}.") for _, connection, request in seen)


async def test_a_sampled_access_log_counts_what_it_leaves_out(tmp_path: Path):
    file = tmp_path / "access.log"
    options = {"access_log": True, "access_logfile": file, "access_log_sampling": 0}
    async with serve(workers=1, admin="127.0.0.1:0", **options) as server:
        admin = Admin(server)
        await admin.wait_ready()
        for _ in range(5):
            await fetch(server)
        await admin.wait_status(lambda status: status["totals"]["access_lines_left_out"] == 5)
        metrics = await admin.get("/metrics")
        assert b"\nasgiri_access_log_lines_left_out_total 5\n" in metrics.body
    assert file.read_text() == ""


async def test_wsgi_threads_bound_the_calls_at_once(tmp_path: Path):
    (tmp_path / "threaded.py").write_text(
        textwrap.dedent("""
            import threading, time

            def application(environ, start_response):
                time.sleep(0.01)
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [str(threading.get_ident()).encode()]
        """)
    )
    options = {"app": "threaded:application", "app_dir": tmp_path, "wsgi_threads": 1}
    async with serve(workers=1, **options) as server:
        answers = await asyncio.gather(*[fetch(server, "/") for _ in range(8)])
        assert len({answer.body for answer in answers}) == 1


async def test_a_certificate_is_made_on_the_spot(tmp_path: Path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    async with serve(workers=1, self_signed=True, environment=environment) as server:
        # The log is open by then, in its format.
        await server.wait_line(r"^\d{4}-.* warning  \[\d+\] self-signed certificate")
        trusting = ssl.create_default_context(cafile=next(tmp_path.glob("*/*-*/certificate.pem")))
        connection = await Http1Connection.connect("127.0.0.1", server.port, tls=trusting)
        assert (await request(connection, "GET", "/hello")).status == 200
        await connection.close()


async def test_a_key_may_have_a_password(tmp_path: Path):
    key = load_pem_private_key(certificates().keyfile.read_bytes(), None)
    encryption = BestAvailableEncryption(b"secret")
    keyfile = tmp_path / "key.pem"
    keyfile.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    options = {
        "certfile": certificates().certfile,
        "keyfile": keyfile,
        "http3": True,
    }
    environment = {"ASGIRI_KEYFILE_PASSWORD": "secret"}
    async with serve(workers=1, environment=environment, **options) as server:
        for connect in (connect_http1, connect_http3):
            connection = await connect(server)
            assert (await request(connection, "GET", "/hello")).status == 200
            await connection.close()


async def test_http_3_can_be_all_there_is():
    """TCP tells the way there."""
    async with serve(workers=2, tls=True, http1=False, http2=False, http3=True) as server:
        connection = await connect_http3(server)
        assert (await request(connection, "GET", "/hello")).body == b"Hello, world!"
        await connection.close()
        for alpn in (("h2", "http/1.1"), ()):
            tls = server.client_context(*alpn)
            connection = await Http1Connection.connect("127.0.0.1", server.port, tls=tls)
            response = await request(connection, "GET", "/hello")
            assert (response.status, response.header("connection")) == (505, "close")
            assert f'h3=":{server.port}"' in (response.header("alt-svc") or "")
            await connection.close()


async def test_http_2_can_be_all_there_is():
    async with serve(workers=2, tls=True, http1=False) as server:
        connection = await connect_http2(server)
        assert (await request(connection, "GET", "/hello")).body == b"Hello, world!"
        await connection.close()
        with pytest.raises(ssl.SSLError, match=r"(?i)no application protocol"):
            await connect_http1(server)

"""First commands of other servers' documentation, with one word changed, as they are typed."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.support.fetch import fetch
from tests.support.server import Server, ServerOptions

pytestmark = pytest.mark.slow

ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello, world!"})

def create_app():
    return app
"""
WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world!"]
"""


@pytest.mark.parametrize(
    ("command", "workers"),
    [
        ("uvicorn main:app", 1),
        ("uvicorn --factory main:create_app", 1),
        ("gunicorn wsgi:app --workers 2", 2),
        ("gunicorn -k uvicorn.workers.UvicornWorker -w 2 main:app", 2),
        ("hypercorn main:app", 1),
        ("granian --interface asgi main:app", 1),
        ("granian --interface wsgi wsgi:app", 1),
    ],
)
async def test_a_quick_start_serves(command: str, workers: int, tmp_path: Path):
    (tmp_path / "main.py").write_text(ASGI)
    (tmp_path / "wsgi.py").write_text(WSGI)
    words = shlex.split(command)[1:]
    options = ServerOptions(
        app=None, workers=workers, directory=tmp_path, environment={"ASGIRI_PORT": "0"}
    )
    server = Server([sys.executable, "-m", "asgiri", *words], options)
    try:
        await asyncio.to_thread(server._wait_workers, workers)
        response = await fetch(server, "/")
        assert (response.status, response.body) == (200, b"Hello, world!")
    finally:
        await asyncio.to_thread(server.stop)


async def test_a_file_of_gunicorn_that_is_not_read_is_told(tmp_path: Path):
    (tmp_path / "main.py").write_text(ASGI)
    (tmp_path / "gunicorn.conf.py").write_text("bind = ':1'")
    words = ["main:app", "--bind", f"unix:{tmp_path / 'socket'}"]
    server = Server(
        [sys.executable, "-m", "asgiri", *words], ServerOptions(app=None, directory=tmp_path)
    )
    try:
        await server.wait_line("gunicorn.conf.py is not read; name it by --config to have it")
        await asyncio.to_thread(server._wait_workers, 1)
        assert os.path.exists(tmp_path / "socket")
    finally:
        await asyncio.to_thread(server.stop)

"""nginx and HAProxy in front of a server, where they are installed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.server import die_with_parent
from tests.support.stream import ByteStream

PATIENCE = 20.0

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed"
)

NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream app {{ server 127.0.0.1:{port}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{own};
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";
      {directives}
    }}
  }}
}}
"""
HAPROXY = """
defaults
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend front
  mode {mode}
  bind 127.0.0.1:{own}
  {directives}
  default_backend app
backend app
  mode {mode}
  server one 127.0.0.1:{port} {server}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.asynccontextmanager
async def nginx(folder: Path, port: int, directives: str) -> AsyncIterator[int]:
    """Pass requests to `port`; gives its own port. `directives` are of a location."""
    own = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, own=own, directives=directives))
    async with _running(["nginx", "-p", folder, "-c", config, "-e", folder / "error"], own):
        yield own


@contextlib.asynccontextmanager
async def haproxy(
    folder: Path, port: int, *, mode: str, server: str = "", directives: str = ""
) -> AsyncIterator[int]:
    """Pass connections or requests to `port`; gives its own port."""
    own = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(
        HAPROXY.format(mode=mode, port=port, own=own, server=server, directives=directives)
    )
    async with _running(["haproxy", "-db", "-f", config], own):
        yield own


@contextlib.asynccontextmanager
async def _running(command: list[str | Path], port: int) -> AsyncIterator[None]:
    process = subprocess.Popen(command, preexec_fn=die_with_parent)
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                assert process.poll() is None, f"{command[0]} did not start"
                try:
                    (await ByteStream.connect("127.0.0.1", port)).close()
                    break
                except ConnectionError:
                    await asyncio.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)

"""Take the pictures of the README: `python -m tests.support.screenshots`. Needs Chromium.

The dashboard of a server whose workers have different things to do, and the demo's page.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import urllib.request
from pathlib import Path

from tests.conformance.webdriver import Browser, browser
from tests.support.admin import Admin
from tests.support.fetch import fetch
from tests.support.http3_client import Http3Connection
from tests.support.server import PROJECT, Server, serve

FOLDER = PROJECT / "docs"
SECONDS = 45
"""Of life before the pictures are taken, so that there are curves."""
ARGUMENTS = ["--headless", "--no-sandbox", "--hide-scrollbars", "--ignore-certificate-errors"]


async def visit(server: Server) -> None:
    """Ask for short and long things, in waves, for ever."""
    number = 0
    while True:
        number += 1
        busy = number % 40 < 12
        await asyncio.gather(
            *(fetch(server, f"/slow?ms={15 + 9 * one}") for one in range(3 if busy else 1)),
            *(fetch(server) for _ in range(8)),
            return_exceptions=True,
        )
        await asyncio.sleep(0.05 if busy else 0.12)


async def keep_open(server: Server) -> None:
    """Connections that stay, over HTTP/3."""
    connections = [await Http3Connection.connect(server.host, server.port) for _ in range(9)]
    try:
        await asyncio.sleep(3600)
    finally:
        for connection in connections:
            await connection.close()


async def take(page: Browser, name: str) -> None:
    """Take the picture of what is shown."""

    def get() -> str:
        with urllib.request.urlopen(f"{page._url}/screenshot", timeout=60) as response:
            return response.read().decode()

    answer = await asyncio.to_thread(get)
    encoded = answer.partition('"value":"')[2].partition('"')[0]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / name).write_bytes(base64.b64decode(encoded))


async def main() -> None:
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    assert driver, "needs chromedriver"
    assert chromium, "needs chromium"
    options = {"workers": 4, "tls": True, "http3": True, "admin": "127.0.0.1:0"}
    async with serve("asgiri.demo:app", **options) as server, contextlib.AsyncExitStack() as stack:
        admin = Admin(server)
        await admin.wait_ready()
        pages = {
            "dashboard.png": (f"http://{admin.host}:{admin.port}/", 1200, 860, ()),
            "dashboard-phone-dark.png": (
                f"http://{admin.host}:{admin.port}/",
                500,
                900,
                ("--force-dark-mode", "--blink-settings=preferredColorScheme=0"),
            ),
            "demo.png": (f"https://{server.host}:{server.port}/", 1000, 820, ()),
        }
        opened = {}
        for name, (address, width, height, more) in pages.items():
            arguments = [*ARGUMENTS, f"--window-size={width},{height}", *more]
            page = await stack.enter_async_context(browser([driver], chromium, arguments))
            await page.open(address)
            opened[name] = page
        visitors = [asyncio.create_task(visit(server)), asyncio.create_task(keep_open(server))]
        await asyncio.sleep(SECONDS)
        for name, page in opened.items():
            await take(page, name)
        for visitor in visitors:
            visitor.cancel()
        await asyncio.wait(visitors)
    print("taken:", *(str(Path("docs") / name) for name in pages))


if __name__ == "__main__":
    asyncio.run(main())

"""As much of WebDriver (W3C) as it takes to load a page and ask it something."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import urllib.request
from collections.abc import AsyncIterator
from typing import Any


class Browser:
    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self, address: str) -> None:
        await self._call("url", {"url": address})

    async def evaluate(self, script: str) -> Any:
        """What the script returns; a promise is awaited."""
        wrapped = f"""
            const done = arguments[arguments.length - 1];
            (async () => {{ {script} }})().then(done, error => done('error: ' + error));
        """
        return await self._call("execute/async", {"script": wrapped, "args": []})

    async def _call(self, path: str, body: dict[str, Any]) -> Any:
        return await asyncio.to_thread(post, f"{self._url}/{path}", body)


def post(url: str, body: dict[str, Any], method: str = "POST") -> Any:
    request = urllib.request.Request(
        url,
        json.dumps(body).encode(),
        {"content-type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["value"]


@contextlib.asynccontextmanager
async def browser(driver: list[str], binary: str, arguments: list[str]) -> AsyncIterator[Browser]:
    """A headless Chromium, driven by chromedriver."""
    process = await asyncio.create_subprocess_exec(
        *driver, "--port=0", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        port = None
        while port is None:
            line = (await process.stdout.readline()).decode()
            assert line, "chromedriver ended"
            port = re.search(r"started successfully on port (\d+)", line)
        root = f"http://127.0.0.1:{port[1]}/session"
        options = {"binary": binary, "args": arguments}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options}}
        session = await asyncio.to_thread(post, root, {"capabilities": capabilities})
        url = f"{root}/{session['sessionId']}"
        try:
            yield Browser(url)
        finally:
            await asyncio.to_thread(post, url, {}, "DELETE")
    finally:
        process.terminate()
        await process.communicate()

"""A headless Firefox, driven over WebDriver BiDi, which needs no program beside it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

PATIENCE = 90.0
LISTENING = re.compile(r"WebDriver BiDi listening on (ws://\S+)")
EVALUATE = "(async () => {{ {script} }})().then(value => JSON.stringify(value ?? null))"


class Browser:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count()
        self._tab = ""

    async def start(self) -> None:
        trusting = {"alwaysMatch": {"acceptInsecureCerts": True}}
        await self._call("session.new", capabilities=trusting)
        tree = await self._call("browsingContext.getTree")
        self._tab = tree["contexts"][0]["context"]

    async def open(self, url: str) -> None:
        await self._call("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    async def evaluate(self, script: str) -> Any:
        """What the body of an asynchronous function returns."""
        told = await self._call(
            "script.evaluate",
            expression=EVALUATE.format(script=script),
            target={"context": self._tab},
            awaitPromise=True,
        )
        assert told["type"] == "success", told
        return json.loads(told["result"]["value"])

    async def close(self) -> None:
        """Let it say goodbye to everybody."""
        await self._call("browser.close")

    async def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(PATIENCE):
            while (answer := json.loads(await self._socket.recv())).get("id") != number:
                pass  # an event
        assert answer["type"] == "success", answer
        return answer["result"]


@contextlib.asynccontextmanager
async def firefox(program: str, settings: Mapping[str, object]) -> AsyncIterator[Browser]:
    """One that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="firefox-", ignore_cleanup_errors=True) as profile:
        lines = (f"user_pref({json.dumps(key)}, {json.dumps(settings[key])});" for key in settings)
        (Path(profile) / "user.js").write_text("\n".join(lines))
        arguments = ("--headless", "--no-remote", "--profile", profile, "--remote-debugging-port=0")
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HOME": profile},
        )
        try:
            async with connect(f"{await _address(process)}/session", max_size=None) as socket:
                browser = Browser(socket)
                await browser.start()
                yield browser
                await browser.close()
                await asyncio.wait_for(process.wait(), PATIENCE)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(PATIENCE):
        while line := (await process.stdout.readline()).decode():
            said += line
            if match := LISTENING.search(line):
                return match[1]
    raise AssertionError(said)

"""Quart as its users write it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import quart

app = quart.Quart(__name__)
app.config["MAX_CONTENT_LENGTH"] = None
greeting = ""


@app.before_serving
async def start() -> None:
    global greeting
    greeting = "hello"


@app.get("/hello/<name>")
async def hello(name: str) -> quart.Response:
    return quart.Response(f"{greeting} {name}", content_type="text/plain")


@app.post("/upload")
async def upload() -> dict[str, str | int]:
    content = (await quart.request.files)["file"].read()
    digest = hashlib.sha256(content).hexdigest()
    return {"name": (await quart.request.form)["name"], "size": len(content), "sha256": digest}


@app.put("/raw")
async def raw() -> dict[str, int]:
    size = 0
    async for part in quart.request.body:
        size += len(part)
    return {"size": size}


@app.get("/stream")
async def stream() -> quart.Response:
    async def numbers() -> AsyncIterator[bytes]:
        for number in range(1000):
            yield b"%d\n" % number

    return quart.Response(numbers(), content_type="text/plain")


@app.get("/file")
async def file() -> quart.Response:
    return await quart.send_file(Path(__file__))


@app.get("/fail")
async def fail() -> None:
    raise RuntimeError("framework error on purpose")


@app.websocket("/room/<name>")
async def room(name: str) -> None:
    await quart.websocket.accept(subprotocol="chat")
    while (text := await quart.websocket.receive()) != "leave":
        await quart.websocket.send(f"{name}: {text}")
    await quart.websocket.close(4000, "bye")
